"""Finds typefaces that are in two folders under different names."""

import functools
from pathlib import Path

import cv2
import numpy as np
from PIL import ImageFont

# Mean difference of the digits' masks, from 0 to 1. Copies of a typeface differ by up
# to 0.044 (FreeSans and TeX Gyre Heros). The nearest typefaces of different designs
# differ by 0.049 (DejaVu Sans and Switzera ADF).
SAME = 0.045
SHAPE = (16, 24)  # width and height to which each digit is stretched


def _digits(file: Path) -> np.ndarray | None:
    """Masks of the digits (10, height, width) from 0 to 1, or None without digits."""
    try:
        font = ImageFont.truetype(file, 64)
    except OSError:
        return None
    found = []
    for character in "0123456789":
        mask = font.getmask(character)
        levels = np.asarray(mask, np.float32).reshape(mask.size[::-1]) / 255
        rows, columns = (np.flatnonzero(levels.any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        inked = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found.append(cv2.resize(inked, SHAPE, interpolation=cv2.INTER_AREA))
    return np.stack(found)


@functools.cache
def _typefaces(folder: Path) -> tuple[list[str], np.ndarray]:
    drawn = [(file.name, _digits(file)) for file in sorted(folder.rglob("*.[ot]tf"))]
    usable = [(name, digits) for name, digits in drawn if digits is not None]
    return [name for name, _ in usable], np.stack([digits for _, digits in usable])


def in_common(folder: Path, others: Path) -> list[tuple[str, str]]:
    """Pairs of font files of two folders whose digits look the same."""
    names, digits = _typefaces(folder)
    other_names, other_digits = _typefaces(others)
    pairs = []
    for name, one in zip(names, digits, strict=True):
        distances = abs(other_digits - one).mean((1, 2, 3))
        if distances.min() < SAME:
            pairs.append((name, other_names[distances.argmin()]))
    return pairs
