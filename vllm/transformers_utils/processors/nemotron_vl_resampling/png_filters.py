# SPDX-License-Identifier: Apache-2.0
"""The filters of PNG rows, undone by a compiled loop."""

import numpy as np

from .passes import compiled


@compiled
def undo(filtered, channels, above, out):
    """Undo the filters of some rows.

    numba makes one function for each number of channels, in which it is a constant. The
    fourth channel of RGB is computed from the bytes of the third, and then set to 255,
    as Pillow does. What goes from pixel to pixel is int32, in which numba is fastest.

    Args:
        filtered: uint8, for each row the number of its filter, then its bytes.
        channels: A tuple of three or four integers.
        above: uint8, the pixels of the row above, of four bytes each.
        out: uint8 of shape ``(rows, width, 4)``, contiguous.

    Returns:
        Whether the sizes fit, and each number is that of a filter.
    """
    rows, width, _ = out.shape
    n, last = len(channels), len(channels) - 1
    length = 1 + n * width
    if len(filtered) < rows * length or len(above) != 4 * width:
        return False
    padding = np.int32(255 if n == 3 else 0)
    for y in range(rows):
        kind = filtered[y * length]
        row = filtered[y * length + 1 : (y + 1) * length]
        pixels = out[y].reshape(-1)
        up = out[y - 1].reshape(-1) if y else above
        a0 = a1 = a2 = a3 = c0 = c1 = c2 = c3 = np.int32(0)  # left, and above that
        if kind == 0:
            for x in range(width):
                pixels[4 * x] = row[n * x]
                pixels[4 * x + 1] = row[n * x + 1]
                pixels[4 * x + 2] = row[n * x + 2]
                pixels[4 * x + 3] = row[n * x + last] | padding
        elif kind == 1:
            for x in range(width):
                a0 = _level(row[n * x] + a0)
                a1 = _level(row[n * x + 1] + a1)
                a2 = _level(row[n * x + 2] + a2)
                a3 = _level(row[n * x + last] + a3)
                _write(pixels, x, a0, a1, a2, a3 | padding)
        elif kind == 2:
            for x in range(width):
                pixels[4 * x] = row[n * x] + up[4 * x]
                pixels[4 * x + 1] = row[n * x + 1] + up[4 * x + 1]
                pixels[4 * x + 2] = row[n * x + 2] + up[4 * x + 2]
                pixels[4 * x + 3] = (row[n * x + last] + up[4 * x + 3]) | padding
        elif kind == 3:
            for x in range(width):
                a0 = _level(row[n * x] + ((a0 + up[4 * x]) >> 1))
                a1 = _level(row[n * x + 1] + ((a1 + up[4 * x + 1]) >> 1))
                a2 = _level(row[n * x + 2] + ((a2 + up[4 * x + 2]) >> 1))
                a3 = _level(row[n * x + last] + ((a3 + up[4 * x + 3]) >> 1))
                _write(pixels, x, a0, a1, a2, a3 | padding)
        elif kind == 4:
            for x in range(width):
                b0, b1 = np.int32(up[4 * x]), np.int32(up[4 * x + 1])
                b2, b3 = np.int32(up[4 * x + 2]), np.int32(up[4 * x + 3])
                a0 = _level(row[n * x] + paeth(a0, b0, c0))
                a1 = _level(row[n * x + 1] + paeth(a1, b1, c1))
                a2 = _level(row[n * x + 2] + paeth(a2, b2, c2))
                a3 = _level(row[n * x + last] + paeth(a3, b3, c3))
                c0, c1, c2, c3 = b0, b1, b2, b3
                _write(pixels, x, a0, a1, a2, a3 | padding)
        else:
            return False
    return True


@compiled
def paeth(left, up, corner):
    """The one of three levels (int32) that is nearest to left + up - corner.

    If the corner is not between the other two, it is one of these. A test compares all
    levels with the definition, which has more branches.
    """
    low, high = min(left, up), max(left, up)
    place = np.int32(np.int32(3) * corner - np.int32(left + up))
    return high if place <= low else (low if high <= place else corner)


@compiled
def _level(value):
    return np.int32(value & 255)


@compiled
def _write(pixels, x, first, second, third, fourth):
    pixels[4 * x] = first
    pixels[4 * x + 1] = second
    pixels[4 * x + 2] = third
    pixels[4 * x + 3] = fourth
