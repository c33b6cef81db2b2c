# SPDX-License-Identifier: Apache-2.0
"""PNG files, decoded to Pillow's pixels in less than half of its time.

Pillow reads the chunks before the pixels and those after them. In between, ISA-L
inflates the pixels and compiled loops undo their filters, in bands that stay in the
processor's caches. This is for RGB and RGBA of 8 bits without interlacing; files of
other kinds, and those with anything irregular, are decoded or refused by Pillow.
"""

import logging
from collections.abc import Iterator
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from .memory import own_memory
from .passes import COMPILING_ERRORS
from .png_filters import undo

try:
    from isal import isal_zlib
except ImportError:  # laid over a checkout of vLLM
    isal_zlib = None  # type: ignore[assignment]

logger = logging.getLogger("vllm.transformers_utils.processors.nemotron_vl")

# Most bytes that are inflated at once, and those of the filtered rows of a band, which
# fit a second-level cache.
_PIECE, _BAND = 1 << 16, 1 << 18

# The first byte of zlib's format has the method (8) and the size of the window, at most
# 7. ISA-L does not check the size, as zlib does.
_LARGEST_WINDOW = b"\x78"


class _Irregular(Exception):
    """Something that is left to Pillow."""


def load(image: Image.Image, data: bytes) -> bool:
    """Decode a PNG file that was opened and not decoded, as ``image.load()`` does.

    Args:
        image: As `PIL.Image.open` returned it.
        data: The file.

    Returns:
        Whether it was decoded. Otherwise the image is as before.

    Raises:
        Exception: All kinds, those of ``image.load()``, for what follows the pixels.
    """
    if not isinstance(image, PngImageFile) or not agrees_with_pillow():
        return False
    try:
        decoded = _decoded(image, data)
    except _Irregular:
        return False
    offset, image.tile, image.im = image.tile[0].offset, [], decoded.im
    # Pillow's own steps before and after its decoder
    image.load_prepare()
    image.fp.seek(offset)  # type: ignore[union-attr]
    image.load_end()
    return True


@cache
def agrees_with_pillow() -> bool:
    """Whether ISA-L is there, and small images become Pillow's.

    It also compiles the loops, or loads them from numba's cache.
    """
    if isal_zlib is None:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (7, 11, 4), np.uint8)
    for mode in ("RGB", "RGBA"):
        image, file = Image.fromarray(noise).convert(mode), BytesIO()
        image.save(file, "PNG")
        try:
            decoded = _decoded(Image.open(file), file.getvalue())  # type: ignore[arg-type]
        except COMPILING_ERRORS as error:
            logger.warning(
                "numba cannot compile, keep or load the loops that decode PNG files "
                "(%r), so Pillow does it, which is slower. NUMBA_CACHE_DIR names the "
                "folder of its cache.",
                error,
            )
            return False
        except _Irregular:
            return False
        if decoded.tobytes() != image.tobytes():
            return False
    return True


def _decoded(image: PngImageFile, data: bytes) -> Image.Image:
    """The pixels of an opened file.

    Raises:
        _Irregular: It is left to Pillow.
    """
    mode, (width, height), tiles = image.mode, image.size, image.tile
    offset = tiles[0].offset if tiles else 0
    if (
        mode not in ("RGB", "RGBA")
        or tiles != [("zip", (0, 0, width, height), offset, mode)]
        or {"interlace", "bbox"} & image.info.keys()  # the second is a frame's
        or image.is_animated
        or not (width and height)
    ):
        raise _Irregular
    rows = _Rows(data, offset - 8)
    whole = Image.new(mode, image.size, None)  # type: ignore[arg-type]
    pixels = own_memory(whole)
    length = 1 + len(mode) * width
    most = min(height, max(1, _BAND // length))
    filtered = np.empty(most * length, np.uint8)
    above = np.zeros(4 * width, np.uint8)
    for top in range(0, height, most):
        count = min(most, height - top)
        rows.fill(filtered.data[: count * length])
        if pixels is None:  # in several blocks, of which a band needs but one
            band = Image.new(mode, (width, count), None)  # type: ignore[arg-type]
            out = own_memory(band)
        else:
            out = pixels[top : top + count]
        if out is None or not undo(filtered, (0,) * len(mode), above, out):
            raise _Irregular
        if pixels is None:
            whole.paste(band, (0, top))
        above = out[-1].reshape(-1)
    rows.check_end()
    return whole


class _Rows:
    """The filtered rows of a file, as they come out of its IDAT chunks."""

    def __init__(self, data: bytes, place: int) -> None:
        self._pieces = _pieces(memoryview(data), place)
        self._inflate = isal_zlib.decompressobj()
        self._piece: bytes | None = next(self._pieces, b"")
        if self._piece[:1] > _LARGEST_WINDOW:
            raise _Irregular

    def fill(self, room: memoryview) -> None:
        while room:
            some = self._next(len(room))
            room[: len(some)] = some
            room = room[len(some) :]

    def check_end(self) -> None:
        """No byte may follow, and the checksum must be right."""
        while not self._inflate.eof:
            if self._next(1):
                raise _Irregular

    def _next(self, most: int) -> bytes:
        """At most so many bytes, perhaps none."""
        if self._inflate.eof or self._piece is None:
            raise _Irregular
        try:
            some = self._inflate.decompress(self._piece, most)
        except isal_zlib.error as error:  # type: ignore[misc]
            raise _Irregular from error
        if len(some) == most:  # there may be more, even if nothing of the piece is left
            self._piece = self._inflate.unconsumed_tail
        else:
            self._piece = next(self._pieces, None)
        return some


def _pieces(data: memoryview, place: int) -> Iterator[bytes]:
    """What is in the IDAT chunks from ``place`` on, of those that are whole.

    Like Pillow it does not compare their checksums.
    """
    while data[place + 4 : place + 8] == b"IDAT":
        start = place + 8
        end = start + int.from_bytes(data[place : place + 4])
        if end > len(data):
            return
        for at in range(start, end, _PIECE):
            yield bytes(data[at : min(at + _PIECE, end)])
        place = end + 4
