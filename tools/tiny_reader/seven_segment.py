"""Digits of seven-segment displays, drawn segment by segment."""

from PIL import ImageDraw

# Segments from the top clockwise, then the middle: a b c d e f g.
_LIT = {
    "0": "abcdef",
    "1": "bc",
    "2": "abged",
    "3": "abgcd",
    "4": "fgbc",
    "5": "afgcd",
    "6": "afgedc",
    "7": "abc",
    "8": "abcdefg",
    "9": "abcdfg",
    "-": "g",
}


def draw_digit(
    pen: ImageDraw.ImageDraw,
    character: str,
    x: float,
    baseline: float,
    em: float,
    width: float,
    weight: float,
    slant: float,
    faint: int,
) -> None:
    """Draw a digit, ``-``, ``.`` or ``:``.

    Args:
        pen: Draws on the mask of the ink.
        character: What to draw.
        x: Left edge in pixels.
        baseline: Lower edge in pixels.
        em: Height in pixels.
        width: Advance in pixels.
        weight: Thickness of a segment, in heights.
        slant: How far the top leans to the right, in heights.
        faint: Ink of the segments that are off, 0 to 255.
    """

    def lean(px: float, py: float) -> tuple[float, float]:
        return px + slant * (baseline - py) * 0.7, py

    thick = weight * em
    top, middle = baseline - em, baseline - em / 2
    if character in ".:":
        heights = [baseline - thick]
        if character == ":":
            heights = [baseline - em * 0.3, baseline - em * 0.7]
        for y in heights:
            cx, cy = lean(x + width / 2, y)
            box = (
                cx - thick * 0.7,
                cy - thick * 0.7,
                cx + thick * 0.7,
                cy + thick * 0.7,
            )
            pen.rectangle(box, 255)
        return
    left, right = x + 0.12 * width, x + 0.88 * width - slant * 0.3 * em
    gap = thick * 0.15
    half = thick / 2
    across = {"a": top + half, "g": middle, "d": baseline - half}
    down = {
        "f": (left + half, top, middle),
        "b": (right - half, top, middle),
        "e": (left + half, middle, baseline),
        "c": (right - half, middle, baseline),
    }
    for name, y in across.items():
        ink = 255 if name in _LIT[character] else faint
        start, end = left + half + gap, right - half - gap
        points = [
            (start, y),
            (start + half, y - half),
            (end - half, y - half),
            (end, y),
            (end - half, y + half),
            (start + half, y + half),
        ]
        if ink:
            pen.polygon([lean(*point) for point in points], ink)
    for name, (cx, start, end) in down.items():
        ink = 255 if name in _LIT[character] else faint
        start, end = start + half + gap, end - half - gap
        points = [
            (cx, start),
            (cx + half, start + half),
            (cx + half, end - half),
            (cx, end),
            (cx - half, end - half),
            (cx - half, start + half),
        ]
        if ink:
            pen.polygon([lean(*point) for point in points], ink)
