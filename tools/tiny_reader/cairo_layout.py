"""Where the held-out texts stand: family, size, margins, and shape of the image."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# Families in the folders ``held_out`` and ``elsewhere`` of tools/fonts.sh.
FAMILIES = (
    *("Caladea", "DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "Inter"),
    *("Liberation Sans", "Liberation Serif", "Liberation Mono", "Roboto"),
    *("Liberation Sans Narrow", "DejaVu Sans Condensed", "Roboto Condensed"),
    *("Hack", "Roboto Slab", "Rasa", "BIZ UDPGothic", "Agave", "Hermit", "Amiri"),
)
THIN = ("Inter Light", "Roboto Light", "Roboto Condensed Light", "Rasa Light")
SEVEN_SEGMENT = ("DSEG7 Classic", "DSEG7 Modern", "DSEG7 Classic Mini")

# Shapes of images and how often each is drawn. "margins": as many pixels on each side
# as people leave; "canvas": a text somewhere on it; "square": small, mostly one tile.
LAYOUTS = {"margins": 0.5, "canvas": 0.2, "square": 0.17, "tall": 0.13}
SQUARE = 180  # pixels of the largest square
LARGEST = 1600  # pixels of the longest side

# Least digit height and character width, as shares of the image's sides. In images of
# several tiles, only the thumbnail shows the whole line.
LEAST_SHARES = (0.04, 0.02)


@dataclass
class Text:
    """A text in its font; lengths in pixels of the image."""

    family: str
    italic: bool
    bold: bool
    em: float


class Extents(NamedTuple):
    """What a line takes, in pixels: its advance, and above and below the baseline."""

    width: float
    above: float
    below: float


@dataclass
class Layout:
    """Where the lines of a text are, in pixels of the image."""

    name: str
    text: Text
    width: float
    height: float
    box: tuple[float, float, float, float]  # left, top, right, bottom of the lines
    places: list[tuple[float, float]]  # of each line: left end and baseline


def choose_text(rng: random.Random, style: str) -> Text:
    em = rng.uniform(14, 140) if rng.random() < 0.4 else rng.uniform(20, 72)
    text = Text(rng.choice(FAMILIES), False, False, em)
    if style == "screenshot":
        text.em = float(rng.randint(14, 22))
        if rng.random() < 0.5:
            text.family = rng.choice(THIN)
    elif style == "seven segments":
        text.family = rng.choice(SEVEN_SEGMENT)
        text.bold = True
    elif style == "stencil":
        text.bold = True
        text.em = max(em, 30.0)
    else:
        text.bold = rng.random() < 0.25
        text.italic = rng.random() < 0.1
    return text


def _place(
    rng: random.Random, name: str, inner: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Width and height of the image, and left and top of a text of ``inner`` size."""
    if name == "margins":
        pixels = rng.choice((2, 5, 10, 20, 40, 100))
        sides = [pixels * rng.uniform(0.7, 1.3) for _ in range(4)]
        if rng.random() < 0.2:  # another margin on each side
            sides = [rng.choice((2, 8, 30, 80)) * rng.uniform(1, 2) for _ in sides]
        left, top, right, bottom = sides
        return inner[0] + left + right, inner[1] + top + bottom, left, top
    if name == "canvas":
        width = inner[0] * rng.uniform(1.2, 5)
        height = max(width * rng.choice((0.4, 0.6, 0.75)), 1.4 * inner[1])
    elif name == "square":
        width = height = max(inner) + rng.uniform(6, 60)
    else:
        width = inner[0] + rng.uniform(6, 80)
        height = max(width * rng.uniform(1.4, 3.5), 1.2 * inner[1])
    left = rng.uniform(3, width - inner[0] - 3)
    return width, height, left, rng.uniform(3, height - inner[1] - 3)


def arrange(
    rng: random.Random,
    lines: list[str],
    style: str,
    measure: Callable[[Text, str], Extents],
) -> Layout:
    """Choose a font, a size and a place until the text is legible and fits.

    Args:
        rng: Source of every choice.
        lines: From top to bottom.
        style: One of ``STYLES`` of cairo_painter.py.
        measure: Gives the extents of a line.
    """
    (name,) = rng.choices([*LAYOUTS], [*LAYOUTS.values()])
    if style == "screenshot":
        name = "canvas"
    while True:
        text = choose_text(rng, style)
        extents = [measure(text, line) for line in lines]
        widths = [e.width for e in extents]
        above = max(e.above for e in extents)
        below = max(e.below for e in extents)
        gap = text.em * rng.uniform(1.2, 1.6)
        inner = max(widths), above + gap * (len(lines) - 1) + below
        if name == "square" and max(inner) > SQUARE - 6:
            continue
        width, height, left, top = _place(rng, name, inner)
        if name == "square" and width > SQUARE:
            continue
        narrowest = min(w / len(s) for w, s in zip(widths, lines, strict=True))
        if (
            max(width, height) <= LARGEST
            and above >= LEAST_SHARES[0] * height
            and narrowest >= LEAST_SHARES[1] * width
        ):
            break
    align = rng.choice((0, 0, 0.5))
    places = [
        (left + align * (inner[0] - w), top + above + number * gap)
        for number, w in enumerate(widths)
    ]
    box = left, top, left + inner[0], top + inner[1]
    return Layout(name, text, width, height, box, places)
