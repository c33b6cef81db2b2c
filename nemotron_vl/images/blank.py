# SPDX-License-Identifier: Apache-2.0
"""Whether a page is blank."""

import itertools

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
    background = next(
        level
        for level, below in enumerate(itertools.accumulate(levels))
        if 2 * below >= grey.width * grey.height
    )
    marks = sum(
        count for level, count in enumerate(levels) if abs(level - background) > _CLEAR
    )
    return marks <= _MOST_MARKS
