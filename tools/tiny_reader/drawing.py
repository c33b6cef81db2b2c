"""The training images: short texts in any size, place, ink and typeface.

All random choices come from one ``random.Random``: the same seed, fonts and versions of
Pillow and OpenCV give the same images.
"""

import functools
import math
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from drawn_text import Character, Drawing
from typefaces import PILLOW_FONT, Typeface, advances_of, find_fonts, font_of

from .inks import load_photographs, paint
from .seven_segment import draw_digit
from .strings import CHARACTERS, SEVEN_SEGMENT

# Font sizes in pixels of the image.
SIZES = (14, 140)
MAX_ANGLE = 8.0  # degrees

BASIC = ImageFont.Layout.BASIC


def training_fonts(folder: Path) -> list[Typeface]:
    """Typefaces that have every character, and Pillow's own."""
    return [*PILLOW_FONT, *find_fonts(folder, CHARACTERS)]


@functools.cache
def _box(file: Path | None, character: str) -> tuple[float, float]:
    """Top and bottom of a character below the baseline, in font sizes."""
    _, top, _, bottom = font_of(file, 100, BASIC).getbbox(character, anchor="ls")
    return top / 100, bottom / 100


@dataclass
class Layout:
    """Where the lines are, in pixels of the image."""

    file: Path | None
    seven_segment: bool
    em: float
    width: float
    height: float
    baselines: list[float]
    # Left edges of the characters of each line, and the right edge of the last.
    edges: list[list[float]]
    digit_box: tuple[float, float]

    def narrowest(self) -> float:
        """Mean width of a character, as a share of the image's width."""
        widths = [(e[-1] - e[0]) / (len(e) - 1) for e in self.edges]
        return min(widths) / self.width

    def tallness(self) -> float:
        """Height of a digit, as a share of the image's height."""
        return (self.digit_box[1] - self.digit_box[0]) * self.em / self.height


def _margins(rng: random.Random, em: float) -> list[float]:
    style = rng.random()
    if style < 0.3:  # tight
        return [em * rng.uniform(0.02, 0.35) for _ in range(4)]
    if style < 0.65:
        usual = em * math.exp(rng.uniform(math.log(0.2), math.log(2)))
        return [usual * rng.uniform(0.7, 1.3) for _ in range(4)]
    wide = em * rng.choice((1.0, 2.0, 4.0))
    return [wide * rng.random() ** 2 + 0.05 * em for _ in range(4)]


def arrange(
    rng: random.Random, fonts: list[Typeface], lines: list[str], effort: float
) -> Layout:
    """Choose typeface, size, spacing, margins and place."""
    seven = rng.random() < 0.05 and not set("".join(lines)) - set(SEVEN_SEGMENT)
    file = rng.choice(rng.choice(fonts))
    if rng.random() < 0.03:
        file = None
    low, high = (math.log(size) for size in SIZES)
    em = math.exp(rng.uniform(low, high))
    spacing = 0.0
    if rng.random() < 0.25 * effort:
        spacing = em * rng.uniform(-0.02, 0.3)
    if seven:
        slim = rng.uniform(0.5, 0.7)
        advances = {c: slim if c.isdigit() or c == "-" else 0.3 for c in CHARACTERS}
        box = (-1.0, 0.0)
        ink_top, ink_bottom = box
    else:
        advances, box = advances_of(file, CHARACTERS, BASIC), _box(file, "0")
        # Commas and some typefaces' digits go below the baseline, "$" above digits.
        ink_top = min(_box(file, c)[0] for c in "0" + lines[0])
        ink_bottom = max(_box(file, c)[1] for c in "0" + lines[-1])
    lengths = [
        list(accumulate((em * advances[c] + spacing for c in line), initial=0.0))
        for line in lines
    ]
    text_width = max(length[-1] for length in lengths)
    gap = em * rng.uniform(1.0, 1.7)
    text_height = gap * (len(lines) - 1) + em * (ink_bottom - ink_top)
    left, top, right, bottom = _margins(rng, em)
    if rng.random() < 0.12 * effort:  # a place on a canvas of a common shape
        width = text_width * rng.uniform(1.1, 4.0)
        height = max(text_height * 1.2, width * rng.choice((1, 0.75, 0.56, 0.4, 1.4)))
        left = rng.uniform(0.02, 0.98) * (width - text_width)
        top = rng.uniform(0.02, 0.98) * (height - text_height)
    else:
        width, height = left + text_width + right, top + text_height + bottom
    align = rng.choice((0, 0, 0.5, 1))
    edges = []
    for length in lengths:
        start = left + align * (text_width - length[-1])
        edges.append([start + x for x in length])
    first = top - em * ink_top
    baselines = [first + gap * number for number in range(len(lines))]
    return Layout(file, seven, em, width, height, baselines, edges, box)


class Artist:
    """Draws texts; holds the typefaces and photographs."""

    def __init__(self, fonts: list[Typeface]) -> None:
        self.fonts = fonts
        self.photographs = load_photographs()

    def draw(
        self,
        rng: random.Random,
        layout: Layout,
        lines: list[str],
        size: tuple[int, int],
        effort: float,
    ) -> Drawing:
        """Draw a layout, at most a little finer than ``size``, which it will get.

        Args:
            rng: Source of every choice.
            layout: From ``arrange``.
            lines: The same as for ``arrange``.
            size: Pixels of the grid of tiles, width and height.
            effort: How much is varied, from 0 to 1.
        """
        scale = 1.2 * max(size[0] / layout.width, size[1] / layout.height)
        scale = min(1.0, scale)
        shape = [max(2, round(s * scale)) for s in (layout.width, layout.height)]
        mask, characters = _write(rng, layout, lines, scale, (shape[0], shape[1]))
        style = rng.random()
        if style < 0.45 * effort:
            most = MAX_ANGLE if style < 0.25 * effort else 2.0
            mask = _turn(mask, characters, rng.uniform(-most, most))
        pixels = paint(rng, mask, layout.em * scale, self.photographs, effort)
        return Drawing(Image.fromarray(pixels), lines, characters)


def _write(
    rng: random.Random,
    layout: Layout,
    lines: list[str],
    scale: float,
    size: tuple[int, int],
) -> tuple[np.ndarray, list[Character]]:
    """The mask of the ink ``(height, width)`` uint8, and the characters."""
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    if rng.random() < 0.04:
        pen.fontmode = "1"  # without anti-aliasing
    em = layout.em * scale
    font = font_of(layout.file, max(4, round(em)), BASIC)
    top, bottom = layout.digit_box
    weight, slant = rng.uniform(0.07, 0.16), rng.uniform(0, 0.15)
    faint = rng.choice((0, 0, rng.randint(5, 50)))
    stencil = 0.0
    if layout.em * scale > 24 and rng.random() < 0.04:
        stencil = rng.uniform(0.04, 0.08)
    characters = []
    for number, (line, edges) in enumerate(zip(lines, layout.edges, strict=True)):
        baseline = layout.baselines[number] * scale
        for index, c in enumerate(line):
            x, end = edges[index] * scale, edges[index + 1] * scale
            if layout.seven_segment:
                draw_digit(pen, c, x, baseline, em, end - x, weight, slant, faint)
            else:
                pen.text((x, baseline), c, 255, font, anchor="ls")
            if stencil and c.isdigit():
                middle = x + (end - x) * rng.uniform(0.44, 0.52)
                half = stencil * em / 2
                pen.rectangle(
                    (middle - half, baseline - 1.1 * em, middle + half, baseline + 2), 0
                )
            characters.append(
                Character(
                    text=c,
                    line=number,
                    index=index,
                    x=(x + end) / 2,
                    y=baseline + (top + bottom) / 2 * em,
                    half_width=(end - x) / 2,
                    half_height=(bottom - top) / 2 * em,
                )
            )
    return np.asarray(mask), characters


def _turn(mask: np.ndarray, characters: list[Character], angle: float) -> np.ndarray:
    """Rotate around the text's middle, if all characters stay in the image."""
    height, width = mask.shape
    xs, ys = [c.x for c in characters], [c.y for c in characters]
    centre = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    matrix = cv2.getRotationMatrix2D(centre, angle, 1.0)
    corners = np.array(
        [
            (c.x + a * c.half_width, c.y + b * c.half_height, 1)
            for c in characters
            for a in (-1, 1)
            for b in (-1, 1)
        ]
    )
    moved = corners @ matrix.T
    if (moved < -1).any() or (moved > (width + 1, height + 1)).any():
        return mask
    places = np.array([(c.x, c.y, 1) for c in characters]) @ matrix.T
    for c, (x, y) in zip(characters, places, strict=True):
        c.x, c.y = float(x), float(y)
    return cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_LINEAR)
