# SPDX-License-Identifier: Apache-2.0
"""Pillow's 8-bit resampling, bit-identical and several times faster.

Pillow resizes in two passes, along rows and along columns. Weights are integers
with 22 fractional bits, and each pass clips to 8 bits. The loops below do the same
on vectors of pixels, and the last pass writes directly into the tiles.

The definition is the behaviour of ``PIL.Image.resize`` in Pillow 13. If the
installed Pillow gives other values, it is called instead (`agrees_with_pillow`).
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock

import numpy as np
from cachetools import LRUCache, cached
from numba import njit
from PIL import Image

_BITS = 22
_HALF = 1 << (_BITS - 1)

# Rows that are resampled together, so that their channels fill whole vectors.
_ROWS = 16
_LANES = 3 * _ROWS

# Bytes of a band of rows that is copied out of an image; it fits into a CPU cache.
_BAND = 1 << 19

# Bytes of a strip of columns, one of Pillow's blocks of memory.
_STRIP = 1 << 22

# Bytes of all weights that are kept. Clients choose the sizes of their images.
_WEIGHTS_BYTES = 16 << 20

Weights = tuple[np.ndarray, np.ndarray, np.ndarray]


def resample(image: Image.Image, out: np.ndarray) -> None:
    """Resize an image as ``image.resize`` does with the bicubic filter.

    Args:
        image: RGB.
        out: uint8 of shape ``(rows, columns, 3, height, width)``, contiguous:
            the resized image has ``rows * height`` x ``columns * width``
            pixels and is cut into these tiles.
    """
    if agrees_with_pillow():
        _resample(image, out)
    else:
        _resample_with_pillow(image, out)


@cache
def agrees_with_pillow() -> bool:
    """Whether the installed Pillow gives the same values as these loops."""
    noise = np.random.default_rng(0).integers(0, 256, (67, 97, 3), np.uint8)
    image = Image.fromarray(noise)
    for rows, columns in ((1, 1), (1, 4), (3, 4)):  # down, columns first, up
        ours, theirs = np.empty((2, rows, columns, 3, 32, 32), np.uint8)
        _resample(image, ours)
        _resample_with_pillow(image, theirs)
        if not np.array_equal(ours, theirs):
            return False
    return True


def _resample_with_pillow(image: Image.Image, out: np.ndarray) -> None:
    rows, columns, _, height, width = out.shape
    resized = image.resize((columns * width, rows * height))
    parts = np.asarray(resized).reshape(rows, height, columns, width, 3)
    out[:] = parts.transpose(0, 2, 4, 1, 3)


def _resample(image: Image.Image, out: np.ndarray) -> None:
    rows, columns, _, height, width = out.shape
    height, width = rows * height, columns * width
    along_rows = _weights(image.width, width)
    along_columns = _weights(image.height, height)
    if pillow_resizes_columns_first(image, width, height):
        between = np.empty((height, image.width, 4), np.uint8)
        for left, strip in _strips(image):
            part = np.empty((height, *strip.shape[1:]), np.uint8)
            _along_columns(_lines(strip), *along_columns, _one_part(part))
            between[:, left : left + strip.shape[1]] = part
        _along_rows(between, *along_rows, out)
    else:
        between = np.empty((image.height, 1, 3, 1, width), np.uint8)
        for top, band in _bands(image):
            _along_rows(band, *along_rows, between[top : top + len(band)])
        _along_columns(_lines(between), *along_columns, out)


def doubled_bands(
    image: Image.Image, width: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Double width and height of an RGB image with Pillow's bilinear filter.

    Args:
        image: RGB.
        width: Pixels of a row after resizing. If that makes rows longer, bands get
            fewer rows.

    Yields:
        Bands of the doubled image: the number of the first row, and uint8 of shape
        ``(rows, width, 3)``.
    """
    along_rows = _weights(image.width, 2 * image.width, bilinear=True)
    first, count, weights = _weights(image.height, 2 * image.height, bilinear=True)
    rows = _band_height(max(2 * image.width, width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        # The rows of the image that the rows of the band depend on.
        band = slice(2 * top, 2 * bottom)
        above, below = first[band][0], (first + count)[band][-1]
        source = rgbx_pixels(image.crop((0, above, image.width, below)))
        between = np.empty((len(source), 2 * image.width, 3), np.uint8)
        _along_rows(source, *along_rows, between.transpose(0, 2, 1)[:, None, :, None])
        out = np.empty((2 * (bottom - top), 2 * image.width, 3), np.uint8)
        _along_columns(
            _lines(between),
            first[band] - above,
            count[band],
            weights[band],
            _one_part(out),
        )
        yield 2 * top, out


def pillow_resizes_columns_first(image: Image.Image, width: int, height: int) -> bool:
    """Whether Pillow (since 13) resizes along columns first, then along rows.

    The first pass clips its values, so the order changes values at sharp edges.
    """
    return image.height - height > max(0, 2 * (image.width - width))


def _lines(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1)


def _one_part(pixels: np.ndarray) -> np.ndarray:
    """View an image as one tile, whose only channel holds the rows of values."""
    return pixels.reshape(len(pixels), 1, 1, 1, -1)


def rgbx_pixels(image: Image.Image) -> np.ndarray:
    """Pixels of an RGB image. Never write to them.

    Returns:
        uint8 of shape ``(height, width, 4)``. It is Pillow's own memory if that is
        contiguous. The fourth channel is padding.
    """
    try:
        return np.asarray(_Memory(image))
    except ValueError:  # the memory of a large image is in several blocks
        pixels = np.empty((image.height, image.width, 4), np.uint8)
        for top, band in _bands(image):
            pixels[top : top + len(band)] = band
        return pixels


def _bands(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Bands of rows: the number of the first row, and uint8 (height, width, 4)."""
    height = _band_height(image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield top, rgbx_pixels(image.crop((0, top, image.width, bottom)))


def _band_height(width: int) -> int:
    return max(_ROWS, _BAND // (4 * width) // _ROWS * _ROWS)


def _strips(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Strips of columns: the first column, and uint8 (height, columns, 4)."""
    try:
        yield 0, np.asarray(_Memory(image))
    except ValueError:  # the memory of a large image is in several blocks
        width = max(1, _STRIP // (4 * image.height))
        for left in range(0, image.width, width):
            right = min(left + width, image.width)
            yield left, rgbx_pixels(image.crop((left, 0, right, image.height)))


class _ArrowArray(ctypes.Structure):
    """The first fields of ``ArrowArray`` in the Arrow C data interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """Pillow's memory of an RGB image as an array; keeps the memory alive.

    Pillow exports it through the Arrow C data interface, as lists of four
    bytes.

    Raises:
        ValueError: From Pillow, if the memory is not contiguous.
    """

    def __init__(self, image: Image.Image) -> None:
        _, self._capsule = image.__arrow_c_array__()
        pointer = _capsule_pointer(self._capsule, b"arrow_array")
        lists = _ArrowArray.from_address(pointer)
        self.__array_interface__ = {
            "shape": (image.height, image.width, 4),
            "typestr": "|u1",
            "data": (lists.children[0].contents.buffers[1], False),
            "version": 3,
        }


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -0.5, at distances in pixels."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0.0)


def _num_bytes(weights: Weights) -> int:
    return sum(array.nbytes for array in weights)


@cached(LRUCache(_WEIGHTS_BYTES, getsizeof=_num_bytes), lock=Lock())
def _weights(size: int, new_size: int, *, bilinear: bool = False) -> Weights:
    """For each output pixel: the first input pixel, their number, int32 weights."""
    support, shape = (1, _bilinear) if bilinear else (2, _bicubic)
    scale = size / new_size
    stretch = max(scale, 1.0)
    centers = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centers - support * stretch + 0.5).astype(np.int32), 0)
    last = np.minimum((centers + support * stretch + 0.5).astype(np.int32), size)
    taps = np.arange((last - first).max())
    distances = np.abs(taps + first[:, None] - centers[:, None] + 0.5)
    weights = shape(distances * (1 / stretch))
    weights[taps >= (last - first)[:, None]] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    weights *= 1 << _BITS
    return first, last - first, (weights + np.copysign(0.5, weights)).astype(np.int32)


def _compiled(function: Callable) -> Callable:
    """Compile at the first call; the compiled code releases Python's lock."""
    return njit(nogil=True, error_model="numpy")(function)


@_compiled
def _along_rows(pixels, first, count, weights, out):
    """``pixels`` (height, width, channels) to ``out`` (rows, columns, 3, y, x)."""
    height, width, _ = pixels.shape
    _, columns, _, part_height, part_width = out.shape
    lanes = _LANES
    turned = np.zeros((width, lanes), np.uint8)
    result = np.empty((part_width, lanes), np.uint8)
    sums = np.empty(lanes, np.int32)
    for top in range(0, height, _ROWS):
        rows = min(_ROWS, height - top)
        for row in range(rows):
            line = pixels[top + row]
            for x in range(width):
                for channel in range(3):
                    turned[x, 3 * row + channel] = line[x, channel]
        for column in range(columns):
            for x in range(part_width):
                place = column * part_width + x
                sums[:] = _HALF
                for tap in range(count[place]):
                    weight, line = weights[place, tap], turned[first[place] + tap]
                    for lane in range(lanes):
                        sums[lane] += weight * np.int32(line[lane])
                for lane in range(lanes):
                    result[x, lane] = min(max(sums[lane] >> _BITS, 0), 255)
            for row in range(rows):
                part, y = divmod(top + row, part_height)
                for channel in range(3):
                    line = out[part, column, channel, y]
                    lane = 3 * row + channel
                    for x in range(part_width):
                        line[x] = result[x, lane]


@_compiled
def _along_columns(pixels, first, count, weights, out):
    """``pixels`` (height, lanes) to ``out`` (rows, columns, channels, y, x).

    The lanes are the channels one after the other.
    """
    lanes = pixels.shape[1]
    _, columns, channels, part_height, part_width = out.shape
    sums = np.empty(lanes, np.int32)
    for row in range(len(first)):
        sums[:] = _HALF
        for tap in range(count[row]):
            weight, line = weights[row, tap], pixels[first[row] + tap]
            for lane in range(lanes):
                sums[lane] += weight * np.int32(line[lane])
        part, y = divmod(row, part_height)
        for channel in range(channels):
            for column in range(columns):
                start = (channel * columns + column) * part_width
                line = sums[start : start + part_width]
                target = out[part, column, channel, y]
                for x in range(part_width):
                    target[x] = min(max(line[x] >> _BITS, 0), 255)
