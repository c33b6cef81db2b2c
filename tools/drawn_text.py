"""Images of short texts, drawn with many fonts, and questions about them.

All random choices come from one ``random.Random``: the same seed, fonts and version of
Pillow give the same images.
"""

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nemotron_vl.checkpoints.questions import SINGLE_LINE, questions_about
from typefaces import advances_of, font_of

MAX_LENGTH = 8
LONGEST_OF_BOTH = 6  # characters of a line in each of two images

# Kinds of questions and how often each is asked.
KINDS = {"read": 0.5, "count": 0.1, "first": 0.1, "lines": 0.2, "both": 0.1}

# Most tiles of an image, chosen at random: small images teach more per second.
TILE_LIMITS = (1, 2, 3, 3, 4, 6, 6, 12)

# In pixels of the tiles: least width of a character, and range of the font size.
_LEAST_WIDTH = 16
_FONT_SIZES = (28, 60)


@dataclass
class Character:
    """A character and its place, in pixels of the image."""

    text: str
    line: int  # from 0
    index: int  # in its line, from 0
    x: float  # of its centre
    y: float
    half_width: float
    half_height: float


@dataclass
class Drawing:
    image: Image.Image
    lines: list[str]
    characters: list[Character] = field(repr=False)


@dataclass
class Question:
    """A conversation about images: the questions with their answers."""

    kind: str
    drawings: list[Drawing]
    turns: list[tuple[str, str]]

    @property
    def images(self) -> list[Image.Image]:
        return [drawing.image for drawing in self.drawings]

    def prompt(self, turn: int = 0) -> str:
        """A turn in the chat format, up to the answer; turn 0 has the images."""
        images = "" if turn else "<image>\n" * len(self.drawings)
        return (
            f"<|start_header_id|>user<|end_header_id|>\n\n{images}"
            f"{self.turns[turn][0]}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )


class Tiler(Protocol):
    """Chooses the grid of tiles for an image; the reference model does so."""

    tile_size: int

    def choose_grid(self, width: int, height: int) -> tuple[int, int]: ...


def draw_string(rng: random.Random, longest: int = MAX_LENGTH) -> str:
    """1 to ``longest`` characters: numbers, prices, dates, times and the like.

    Punctuation comes between digits, as in real text.
    """
    length = rng.randint(1, longest)
    while True:
        text = "".join(
            rng.choice("0123456789") if rng.random() < 0.78 else rng.choice(".,:-/$")
            for _ in range(length)
        )
        padded = f" {text} "
        if all(
            (before.isdigit() and after.isdigit())
            or (c == "-" and not before.isdigit() and after.isdigit())
            or (c == "$" and not before.isdigit() and (after.isdigit() or length == 1))
            or c.isdigit()
            for before, c, after in zip(padded, text, padded[2:], strict=False)
        ):
            return text


def _write(
    rng: random.Random,
    fonts: list[list[Path | None]],
    lines: list[str],
    is_good: Callable[[int, int, float, float], bool],
    effort: float,
) -> tuple[Image.Image, list[Character]]:
    """Write lines of text.

    Args:
        rng: Source of every choice.
        fonts: Font files by typeface.
        lines: The text.
        is_good: Decides whether an image of a width and height may have characters of
            a mean width and a font size, all in pixels.
        effort: How much is varied, from 0 to 1.

    Returns:
        The mask of the ink, and the characters with their places.
    """
    while True:
        file = rng.choice(rng.choice(fonts))
        em = round(20 * 4 ** (rng.random() ** 1.7))  # pixels, more often small
        line_height = rng.uniform(1.05, 1.5) * em
        margins = [
            em
            * (
                rng.uniform(1.0, 3.5)
                if rng.random() < 0.12 * effort
                else rng.uniform(0.1, 0.6)
            )
            for _ in range(4)
        ]
        spacing = rng.uniform(0, 0.25) * em if rng.random() < 0.3 * effort else 0.0
        advances = advances_of(file)
        lengths = [
            list(accumulate((em * advances[c] + spacing for c in line), initial=0.0))
            for line in lines
        ]
        text_width = max(length[-1] for length in lengths)
        width = round(text_width + margins[0] + margins[2])
        height = round(line_height * len(lines) + margins[1] + margins[3])
        mean = sum(length[-1] for length in lengths) / sum(map(len, lines))
        if is_good(width, height, mean, em):
            break

    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    font = font_of(file, em)
    top, bottom = font.getbbox("0", anchor="ls")[1::2]
    align = rng.choice((0, 0, 0.5, 1))
    characters = []
    for number, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        x = margins[0] + align * (text_width - length[-1])
        baseline = margins[1] + number * line_height + (line_height + 0.7 * em) / 2
        for i, c in enumerate(line):
            pen.text((x + length[i], baseline), c, 255, font, anchor="ls")
            characters.append(
                Character(
                    text=c,
                    line=number,
                    index=i,
                    x=x + (length[i] + length[i + 1]) / 2,
                    y=baseline + (top + bottom) / 2,
                    half_width=(length[i + 1] - length[i]) / 2,
                    half_height=(bottom - top) / 2,
                )
            )
    if rng.random() < 0.4 * effort:
        angle = rng.uniform(-2, 2)
        mask = mask.rotate(angle, Image.Resampling.BILINEAR)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        for c in characters:
            dx, dy = c.x - width / 2, c.y - height / 2
            c.x = width / 2 + cos * dx + sin * dy
            c.y = height / 2 - sin * dx + cos * dy
    return mask, characters


def _paint(rng: random.Random, mask: Image.Image, effort: float) -> Image.Image:
    """Paint ink on paper of another brightness; add noise, blur and JPEG artefacts."""
    size = mask.size
    generator = np.random.default_rng(rng.getrandbits(32))
    dark, light = rng.uniform(0, 70), rng.uniform(185, 255)
    if rng.random() < 0.3 * effort:
        dark, light = light, dark
    tint = 20 * effort
    ink, paper = (
        np.array([level + rng.uniform(-tint, tint) for _ in range(3)], np.float32)
        for level in (dark, light)
    )
    background = np.broadcast_to(paper, (size[1], size[0], 3))
    if rng.random() < 0.4 * effort:  # uneven lighting
        across, down = (
            rng.uniform(-15, 15) * np.linspace(-1, 1, side, dtype=np.float32)
            for side in size
        )
        background = background + (across + down[:, None])[..., None]
    alpha = np.asarray(mask, np.float32)[..., None] / 255
    pixels = background * (1 - alpha) + ink * alpha
    if rng.random() < 0.5 * effort:
        pixels = pixels + rng.uniform(1, 8) * generator.standard_normal(
            pixels.shape, np.float32
        )
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.25 * effort:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    if rng.random() < 0.3 * effort:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=rng.randint(50, 95))
        image = Image.open(file)
        image.load()
    return image


def shuffled(
    rng: random.Random, asked: list[tuple[str, str]], head: int
) -> list[tuple[str, str]]:
    """Question number ``head`` first, then the others in any order."""
    rest = asked[:head] + asked[head + 1 :]
    rng.shuffle(rest)
    return [asked[head], *rest]


def make_question(
    rng: random.Random,
    fonts: list[list[Path | None]],
    tiler: Tiler,
    kind: str,
    *,
    effort: float = 1.0,
    turns: int = 1,
    text: str | None = None,
) -> Question:
    """Draw images for a question, and add further turns about them.

    Args:
        rng: Source of every choice.
        fonts: Font files by typeface.
        tiler: Chooses the grids of the images.
        kind: ``read``, ``count``, ``first``, ``lines`` (two or three lines) or
            ``both`` (two images).
        effort: How much is varied and distorted, and how many tiles are allowed, from
            0 to 1.
        turns: Most questions about the same images.
        text: The only line; by default, lines are drawn at random.
    """
    max_tiles = max(2, round(rng.choice(TILE_LIMITS) * effort))

    def drawing(lines: list[str]) -> Drawing:
        is_good = _readable(tiler, max_tiles)
        mask, characters = _write(rng, fonts, lines, is_good, effort)
        return Drawing(_paint(rng, mask, effort), lines, characters)

    def strings(count: int, longest: int = MAX_LENGTH) -> list[str]:
        return [draw_string(rng, longest) for _ in range(count)]

    if kind == "both":
        texts = strings(2, LONGEST_OF_BOTH)
        images = [drawing([text]) for text in texts]
        return Question(kind, images, questions_about(kind, texts))
    if kind == "lines":
        texts = strings(rng.randint(2, 3))
        asked = questions_about(kind, texts)
        head = rng.randrange(len(asked))
    else:
        texts = strings(1) if text is None else [text]
        asked = questions_about(kind, texts)
        head = SINGLE_LINE.index(kind)
    asked = shuffled(rng, asked, head)
    return Question(kind, [drawing(texts)], asked[:turns])


def _readable(tiler: Tiler, max_tiles: int) -> Callable[[int, int, float, float], bool]:
    """Return a function that decides whether an image fits ``max_tiles`` and its
    characters stay readable.

    The limit rises with the number of attempts.
    """
    tries = 0

    def is_good(width: int, height: int, advance: float, em: float) -> bool:
        nonlocal tries
        tries += 1
        columns, rows = tiler.choose_grid(width, height)
        return (
            columns * rows <= max_tiles + tries // 20
            and advance * columns * tiler.tile_size / width >= _LEAST_WIDTH
            and _FONT_SIZES[0] <= em * rows * tiler.tile_size / height <= _FONT_SIZES[1]
        )

    return is_good
