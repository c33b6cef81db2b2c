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
    # Ends of each segment, and its place in the other direction.
    across = {
        "a": (left, right, top + half),
        "g": (left, right, middle),
        "d": (left, right, baseline - half),
    }
    down = {
        "f": (top, middle, left + half),
        "b": (top, middle, right - half),
        "e": (middle, baseline, left + half),
        "c": (middle, baseline, right - half),
    }
    for name, (start, end, place) in (across | down).items():
        ink = 255 if name in _LIT[character] else faint
        start, end = start + half + gap, end - half - gap
        points = [
            (start, place),
            (start + half, place - half),
            (end - half, place - half),
            (end, place),
            (end - half, place + half),
            (start + half, place + half),
        ]
        if name in down:
            points = [(py, px) for px, py in points]
        if ink:
            pen.polygon([lean(*point) for point in points], ink)
