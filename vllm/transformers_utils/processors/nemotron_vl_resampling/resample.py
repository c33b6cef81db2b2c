# SPDX-License-Identifier: Apache-2.0
"""Pillow's 8-bit resampling, many times faster: bit-identical, or close to that.

Pillow resizes in two passes, along rows and along columns. Weights are integers with 22
fractional bits, and each pass rounds and clips to 8 bits. `Precision` says how the
compiled loops of ``passes.py`` add the products up:

- float64 holds each product and each sum as it is: an integer of less than 2^53 times
  2^-22. The values are Pillow's.
- float32 holds the weights as they are: they have at most 24 bits. It rounds each of
  ``n`` sums, which are below 512, by at most 2^-16 levels; processors without a fused
  multiply-add round each product by as much. ``n`` is at most four times the reduction,
  plus one. So a sum is within 2n * 2^-16 levels of Pillow's, and a pass differs by one
  level only where Pillow's sum is that close to the middle of two levels. In the second
  pass, such a level changes the sum by at most that of the absolute weights, which is
  below 1.5. The result is within 2 levels.

The definition is the behaviour of ``PIL.Image.resize`` in Pillow 13. If the installed
Pillow gives other values, it is called instead (`agrees_with_pillow`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np
from cachetools import LRUCache, cached
from PIL import Image

from .memory import is_contiguous, rows_of
from .passes import columns_first, planes_to_pixels, rows_first

logger = logging.getLogger("vllm.transformers_utils.processors.nemotron_vl")

_BITS = 22

# Bytes of the pixels of a band, if Pillow's memory of the image must be copied.
_COPIED = 8 << 20

# Bytes of a band of a doubled image.
_DOUBLED = 1 << 19

# Fewest rows of the result in a band: each band resizes some rows of its neighbours.
_FEWEST_ROWS = 64

# Fewest rows and columns of an image for the loops.
_LEAST = 16

# Bytes of all weights that are kept. Clients choose the sizes of their images.
_WEIGHTS_BYTES = 16 << 20

Weights = tuple[np.ndarray, np.ndarray, np.ndarray]
Precision = Literal["float32", "float64"]


def bands(
    image: Image.Image, outs: Sequence[np.ndarray], precision: Precision, parts: int = 1
) -> list[Callable[[], None]]:
    """Calls that resize an image as ``image.resize`` does with the bicubic filter.

    Threads may run them at the same time.

    Args:
        image: RGB.
        outs: One for each size: uint8 of shape ``(rows, columns, 3, height, width)``,
            contiguous. The resized image has ``rows * height`` x ``columns * width``
            pixels and is cut into these tiles.
        precision: float64 for Pillow's values, float32 for values close to them.
        parts: How many calls are wanted, if the image is large enough for them.
    """
    # Both, so that none is compiled while requests wait.
    if not (agrees_with_pillow("float32") and agrees_with_pillow("float64")):
        return [partial(_resample_with_pillow, image, out) for out in outs]
    return _bands(image, outs, precision, parts)


def _bands(
    image: Image.Image, outs: Sequence[np.ndarray], precision: Precision, parts: int
) -> list[Callable[[], None]]:
    rows = max((out.shape[0] * out.shape[3] for out in outs), default=0)
    parts = min(parts, -(-rows // _FEWEST_ROWS))
    if not is_contiguous(image):
        parts = min(rows, max(parts, 4 * image.width * image.height // _COPIED))
    sizes = [_Size.of(image, out, precision) for out in outs]
    return [partial(_resample_band, image, sizes, part, parts) for part in range(parts)]


class _Size(NamedTuple):
    """What the bands of one size have in common."""

    passes: Callable[..., None]
    along_rows: Weights
    along_columns: Weights
    out: np.ndarray

    @classmethod
    def of(cls, image: Image.Image, out: np.ndarray, precision: Precision) -> "_Size":
        rows, columns, _, height, width = out.shape
        height, width = rows * height, columns * width
        columns_go_first = pillow_resizes_columns_first(image, width, height)
        return cls(
            columns_first if columns_go_first else rows_first,
            _weights(image.width, width, precision),
            _weights(image.height, height, precision),
            out,
        )


def _resample_band(
    image: Image.Image, sizes: Sequence[_Size], part: int, parts: int
) -> None:
    """One of ``parts`` bands of rows of the image in each size."""
    wanted = []
    for size in sizes:
        first, count, _ = size.along_columns
        top, bottom = len(first) * part // parts, len(first) * (part + 1) // parts
        if top < bottom:
            above, below = first[top], first[bottom - 1] + count[bottom - 1]
            wanted.append((above, below, top, bottom, size))
    highest = min(above for above, *_ in wanted)
    lowest = max(below for _, below, *_ in wanted)
    pixels = _for_loops(rows_of(image, highest, lowest))
    for above, below, top, bottom, size in wanted:
        rows = pixels[above - highest : below - highest]
        size.passes(rows, size.along_rows, size.along_columns, top, bottom, size.out)


def _for_loops(pixels: np.ndarray) -> np.ndarray:
    """Pixels of four bytes as uint32, with at least `_LEAST` columns."""
    missing = _LEAST - pixels.shape[1]
    if missing > 0:
        pixels = np.pad(pixels, ((0, 0), (0, missing), (0, 0)))
    return pixels.view(np.uint32)[..., 0]


@cache
def agrees_with_pillow(precision: Precision = "float64") -> bool:
    """Whether the installed Pillow gives the same values as these loops.

    In float32 they may differ by 2 levels. It also compiles the loops, or loads them
    from numba's cache. If that fails they agree with nothing.
    """
    most = 0 if precision == "float64" else 2
    noise = np.random.default_rng(0).integers(0, 256, (67, 97, 3), np.uint8)
    image = Image.fromarray(noise)
    for rows, columns in ((1, 1), (1, 4), (3, 4)):  # down, columns first, up
        ours, theirs = np.empty((2, rows, columns, 3, 32, 32), np.uint8)
        try:
            for band in _bands(image, [ours], precision, 1):
                band()
        except Exception as error:  # numba raises all kinds for a damaged cache
            logger.warning(
                "numba cannot compile, keep or load the loops that resize images "
                "(%r), so Pillow does it, which is slower. NUMBA_CACHE_DIR names the "
                "folder of its cache.",
                error,
            )
            return False
        _resample_with_pillow(image, theirs)
        if np.abs(ours.astype(np.int16) - theirs).max() > most:
            return False
    return True


def _resample_with_pillow(image: Image.Image, out: np.ndarray) -> None:
    rows, columns, _, height, width = out.shape
    cut(np.asarray(image.resize((columns * width, rows * height))), out)


def cut(pixels: np.ndarray, out: np.ndarray) -> None:
    """Cut an image that has its size already.

    Args:
        pixels: uint8 of shape ``(height, width, channels)``, of which the first three
            channels are taken.
        out: As one of `bands`.
    """
    rows, columns, channels, height, width = out.shape
    parts = pixels[..., :channels].reshape(rows, height, columns, width, channels)
    out[:] = parts.transpose(0, 2, 4, 1, 3)


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
    if not agrees_with_pillow():
        twice = (2 * image.width, 2 * image.height)
        yield 0, np.asarray(image.resize(twice, Image.Resampling.BILINEAR))
        return
    along_rows = _weights(image.width, 2 * image.width, "float64", bilinear=True)
    first, count, weights = _weights(
        image.height, 2 * image.height, "float64", bilinear=True
    )
    rows = 2 * max(_LEAST, _DOUBLED // (4 * max(2 * image.width, width)))
    for top in range(0, 2 * image.height, rows):
        bottom = min(top + rows, 2 * image.height)
        above, below = first[top], first[bottom - 1] + count[bottom - 1]
        planes = np.empty((1, 1, 3, bottom - top, 2 * image.width), np.uint8)
        rows_first(
            _for_loops(rows_of(image, above, below)),
            along_rows,
            (first[top:bottom], count[top:bottom], weights[top:bottom]),
            0,
            bottom - top,
            planes,
        )
        yield top, planes_to_pixels(planes[0, 0])


def pillow_resizes_columns_first(image: Image.Image, width: int, height: int) -> bool:
    """Whether Pillow (since 13) resizes along columns first, then along rows.

    The first pass clips its values, so the order changes values at sharp edges.
    """
    return image.height - height > max(0, 2 * (image.width - width))


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
def _weights(
    size: int, new_size: int, precision: Precision, *, bilinear: bool = False
) -> Weights:
    """For each output pixel: the first input pixel, their number, the weights.

    The weights are Pillow's integers times 2^-22.
    """
    support, shape = (1, _bilinear) if bilinear else (2, _bicubic)
    scale = size / new_size
    stretch = max(scale, 1.0)
    centers = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centers - support * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support * stretch + 0.5).astype(np.int64), size)
    taps = np.arange((last - first).max())
    distances = np.abs(taps + first[:, None] - centers[:, None] + 0.5)
    weights = shape(distances * (1 / stretch))
    weights[taps >= (last - first)[:, None]] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    weights *= 1 << _BITS
    whole = np.trunc(weights + np.copysign(0.5, weights))
    return first, last - first, (whole / (1 << _BITS)).astype(precision)
