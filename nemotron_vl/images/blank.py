# SPDX-License-Identifier: Apache-2.0
"""Whether a page is blank."""

from PIL import Image

from .files import as_rgb

# A page of 8-point digits has strokes of a pixel at this size, and the smallest digit
# has seven such pixels. The noise of a scanner is averaged away.
_LONG_SIDE = 1000  # pixels
_CLEAR = 32  # of 255 grey levels, beside the background
_MOST_MARKS = 5  # pixels


def is_blank(image: Image.Image) -> bool:
    """Whether a page has no marks: nothing that differs clearly from its background.

    The page is reduced by a whole number to about 1,000 pixels on its long side, in
    grey levels. The median is its background. A blank page has at most 5 pixels that
    differ from it by more than 32 of 255 levels.
    """
    image.draft("L", (_LONG_SIDE, _LONG_SIDE))  # a JPEG is decoded at a smaller size
    grey = as_rgb(image).convert("L")
    grey = grey.reduce(max(1, round(max(grey.size) / _LONG_SIDE)))
    levels = grey.histogram()
    half, below = grey.width * grey.height / 2, 0
    for background, count in enumerate(levels):
        below += count
        if below >= half:
            break
    marks = sum(levels[: max(0, background - _CLEAR)]) + sum(
        levels[background + _CLEAR + 1 :]
    )
    return marks <= _MOST_MARKS
