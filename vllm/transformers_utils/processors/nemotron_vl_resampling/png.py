# SPDX-License-Identifier: Apache-2.0
"""PNG files, decoded to Pillow's pixels: clean pages in less than half of its time.

Pillow reads the chunks before the pixels and those after them. In between, zlib-ng
inflates the pixels and compiled loops undo their filters, in bands that stay in the
processor's caches. This is for RGB and RGBA of 8 bits without interlacing; files of
other kinds, and those with anything irregular, are decoded or refused by Pillow.

Pillow's own wheels have zlib-ng, too. ISA-L is faster for noise, but reads codes that
zlib refuses, and needs 27 times as long for files of empty blocks.
"""

import logging
from collections.abc import Iterator
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

from .memory import own_memory
from .png_filters import undo

try:
    from zlib_ng import zlib_ng as zlib
except ImportError:  # laid over a checkout of vLLM
    import zlib  # type: ignore[no-redef]

logger = logging.getLogger("vllm.transformers_utils.processors.nemotron_vl")

# Most bytes that are inflated at once, and those of the filtered rows of a band, which
# fit a second-level cache.
_PIECE, _BAND = 1 << 16, 1 << 18

# Compressed bytes after the last row: empty blocks, which Pillow does not read.
_MOST_AFTER_ROWS = 1 << 16


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
    if type(image) is not PngImageFile or not agrees_with_pillow():
        return False
    try:
        decoded, length = _decoded(image, data)
    except _Irregular:
        return False
    offset, image.tile, image.im = image.tile[0].offset, [], decoded.im
    # Pillow's own steps: it reads as much as its decoder needs, then what follows.
    image.load_prepare()
    image.fp.seek(offset)  # type: ignore[union-attr]
    while length > 0 and (some := image.load_read(ImageFile.MAXBLOCK)):
        length -= len(some)
    image.load_end()
    image.fp, image.readonly = None, 0
    return True


@cache
def agrees_with_pillow() -> bool:
    """Whether small images become Pillow's.

    It also compiles the loops, or loads them from numba's cache. If that fails they
    agree with nothing.
    """
    noise = np.random.default_rng(0).integers(0, 256, (7, 11, 4), np.uint8)
    try:
        for mode in ("RGB", "RGBA"):
            image, file = Image.fromarray(noise).convert(mode), BytesIO()
            image.save(file, "PNG")
            opened = Image.open(file)
            decoded, _ = _decoded(opened, file.getvalue())  # type: ignore[arg-type]
            if decoded.tobytes() != image.tobytes():
                raise ValueError("other pixels than Pillow's")
    except Exception as error:  # numba raises all kinds for a damaged cache
        logger.warning(
            "The loops that decode PNG files do not work (%r), so Pillow does it, "
            "which is slower. NUMBA_CACHE_DIR names the folder of numba's cache.",
            error,
        )
        return False
    return True


def _decoded(image: PngImageFile, data: bytes) -> tuple[Image.Image, int]:
    """The pixels of an opened file, and the number of compressed bytes.

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
    return whole, rows.end()


class _Rows:
    """The filtered rows of a file, inflated from its IDAT chunks."""

    def __init__(self, data: bytes, place: int) -> None:
        self._pieces = _pieces(memoryview(data), place)
        self._inflate = zlib.decompressobj()
        self._piece = b""
        self._length = 0  # of all pieces so far

    def fill(self, room: memoryview) -> None:
        while room:
            some = self._next(len(room))
            room[: len(some)] = some
            room = room[len(some) :]

    def end(self) -> int:
        """Check that no byte follows and that the checksum is right.

        Returns:
            The number of compressed bytes.
        """
        most = self._length + _MOST_AFTER_ROWS
        while not self._inflate.eof:
            if self._next(1) or self._length > most:
                raise _Irregular
        return self._length - len(self._inflate.unused_data)

    def _next(self, most: int) -> bytes:
        """At most so many bytes, perhaps none."""
        if self._inflate.eof:
            raise _Irregular
        try:
            some = self._inflate.decompress(self._piece, most)
        except zlib.error as error:  # type: ignore[misc]
            raise _Irregular from error
        # There may be more of these, even if nothing of the piece is left.
        self._piece = self._inflate.unconsumed_tail
        if len(some) < most and not self._inflate.eof:
            self._piece = next(self._pieces, b"")
            self._length += len(self._piece)
            if not self._piece:
                raise _Irregular
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
