# SPDX-License-Identifier: Apache-2.0
"""Pillow's 8-bit resampling, bit for bit, several times faster.

Pillow resizes along rows and along columns, with integer weights of 22
fractional bits, and clips to 8 bits after each pass. The loops below do the
same on whole vectors of pixels, and the last pass writes into the tiles.

Source of the definition: the behaviour of ``PIL.Image.resize`` in Pillow 13.
A Pillow that gives other values is used itself, see `agrees_with_pillow`.
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import cache, lru_cache

import numpy as np
from numba import njit
from PIL import Image

_BITS = 22
_HALF = 1 << (_BITS - 1)

# Rows that are resampled together: their three channels fill whole vectors.
_ROWS = 16
_LANES = 3 * _ROWS

# Bytes of a band of rows that is taken out of a picture; it stays in a cache.
_BAND = 1 << 19

Weights = tuple[np.ndarray, np.ndarray, np.ndarray]


def resample(image: Image.Image, out: np.ndarray) -> None:
    """Resize a picture as ``image.resize`` does, bicubic.

    Args:
        image: RGB.
        out: uint8 of shape ``(rows, columns, 3, height, width)``, contiguous:
            the resized picture has ``rows * height`` x ``columns * width``
            pixels and is cut into these parts.
    """
    if agrees_with_pillow():
        _resample(image, out)
    else:
        _resample_with_pillow(image, out)


@cache
def agrees_with_pillow() -> bool:
    """Whether the installed Pillow computes what is computed here."""
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
        pixels = rgbx_pixels(image)
        between = np.empty((height, *pixels.shape[1:]), np.uint8)
        _along_columns(_lines(pixels), *along_columns, _one_part(between))
        _along_rows(between, *along_rows, out)
    else:
        between = np.empty((image.height, 1, 3, 1, width), np.uint8)
        for top, band in _bands(image):
            _along_rows(band, *along_rows, between[top : top + len(band)])
        _along_columns(_lines(between), *along_columns, out)


def doubled(image: Image.Image) -> np.ndarray:
    """An RGB picture twice as wide and high, as Pillow's bilinear filter does it.

    Returns:
        uint8 of shape ``(height, width, 3)``.
    """
    width, height = image.size
    between = np.empty((height, 2 * width, 3), np.uint8)
    along_rows = _weights(width, 2 * width, bilinear=True)
    for top, band in _bands(image):
        part = between[top : top + len(band)].transpose(0, 2, 1)
        _along_rows(band, *along_rows, part[:, None, :, None])
    out = np.empty((2 * height, 2 * width, 3), np.uint8)
    along_columns = _weights(height, 2 * height, bilinear=True)
    _along_columns(_lines(between), *along_columns, _one_part(out))
    return out


def pillow_resizes_columns_first(image: Image.Image, width: int, height: int) -> bool:
    """Whether Pillow (since 13) resizes along columns before it does along rows.

    Values are clipped between the passes, so their order shows at sharp edges.
    """
    return image.height - height > max(0, 2 * (image.width - width))


def _lines(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1)


def _one_part(pixels: np.ndarray) -> np.ndarray:
    """All values of a row as one channel of one part."""
    return pixels.reshape(len(pixels), 1, 1, 1, -1)


def rgbx_pixels(image: Image.Image) -> np.ndarray:
    """Pixels of an RGB picture, channels last; never write to them.

    Returns:
        uint8 of shape ``(height, width, 4)``, Pillow's own memory where it is
        in one piece. The fourth channel means nothing.
    """
    try:
        return np.asarray(_Memory(image))
    except ValueError:  # a large picture lies in several pieces
        pixels = np.empty((image.height, image.width, 4), np.uint8)
        for top, band in _bands(image):
            pixels[top : top + len(band)] = band
        return pixels


def _bands(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """First row and pixels of bands of rows, uint8 of height x width x 4."""
    height = max(_ROWS, _BAND // (4 * image.width) // _ROWS * _ROWS)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield top, rgbx_pixels(image.crop((0, top, image.width, bottom)))


class _ArrowArray(ctypes.Structure):
    """``ArrowArray`` of the Arrow C data interface, as far as it is read here."""


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
    """Pillow's memory of an RGB picture for NumPy, kept while an array uses it.

    Pillow exports it through the Arrow C data interface, as lists of four
    bytes.

    Raises:
        ValueError: From Pillow, when the memory is not in one piece.
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


@lru_cache(maxsize=256)
def _weights(size: int, new_size: int, *, bilinear: bool = False) -> Weights:
    """First input pixel, number of them and int32 weights for each output pixel."""
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
    """Compile at the first call, without Python's lock while it runs."""
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
