"""TIFF files of many parts."""

import io
import struct
import zlib

from PIL import Image

from .files import blank, directory, jpeg_with, segment, side_of
from .jpeg import jpeg_scans


def _tiff(
    pixels: int,
    strips: int,
    rows: int,
    compression: int,
    data: bytes,
    width: int = 0,
    order: int = 1,
    more: int = 0,
) -> bytes:
    """A TIFF whose strips have the same bytes, and `more` private entries."""
    side = side_of(pixels)
    width, height = (width, pixels // width) if width else (side, side)
    place = 8 + 2 + 12 * (10 + more) + 4
    lists = b"".join(
        struct.pack("<I", value) * strips for value in (place + 8 * strips, len(data))
    )
    if strips == 1:
        offsets, sizes, lists = place, len(data), b""
    else:
        offsets, sizes = place, place + 4 * strips
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8)]
    entries += [(259, 3, 1, compression), (262, 3, 1, 1), (266, 3, 1, order)]
    entries += [(273, 4, strips, offsets), (277, 3, 1, 1)]
    entries += [(278, 4, 1, rows), (279, 4, strips, sizes)]
    entries += [(50_000 + n, 4, 1, 0) for n in range(more)]
    return directory(entries) + lists + data


def tiff_strips(parts: int, pixels: int) -> bytes:
    """More strips than the image has."""
    return _tiff(pixels, max(2, parts // 8), 1, 1, bytes(side_of(pixels)))


def tiff_short_strips(parts: int, pixels: int) -> bytes:
    """A strip of each row, all with the same bytes."""
    return _tiff(pixels, max(2, side_of(pixels)), 1, 1, bytes(side_of(pixels)))


def tiff_repeated_strips(parts: int, pixels: int) -> bytes:
    """Strips of nearly the whole image, over and over."""
    side = min(side_of(pixels), 2000)
    rows = max(1, side - 1)
    return _tiff(side * side, max(2, parts // 8), rows, 1, bytes(side * rows))


def tiff_deflate_strips(parts: int, pixels: int) -> bytes:
    row = zlib.compress(bytes(side_of(pixels)), 9)
    return _tiff(pixels, max(2, side_of(pixels)), 1, 8, row)


def tiff_large_tile(parts: int, pixels: int) -> bytes:
    """A tile of many pixels for an image of a few."""
    side = 16 * max(1, side_of(pixels) // 16)
    data = zlib.compress(bytes(side * side), 9)
    entries = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8)]
    entries += [(262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side)]
    entries += [(324, 4, 1, 8 + 2 + 12 * 10 + 4), (325, 4, 1, len(data))]
    return directory(entries) + data


def tiff_entries(parts: int, pixels: int) -> bytes:
    side = side_of(pixels)
    entries = [(256, 4, 1, side), (257, 4, 1, side)]
    return directory(entries, min(parts, 65_000), 2_000_000)


def tiff_jpeg_scans(parts: int, pixels: int) -> bytes:
    return _tiff(pixels, 1, side_of(pixels), 7, jpeg_scans(parts, pixels, "L"))


def tiff_shared_scans(parts: int, pixels: int) -> bytes:
    """Strips of the same JPEG of 85 scans."""
    width, rows = max(1, side_of(pixels)), max(1, side_of(pixels) // 25)
    file = io.BytesIO()
    Image.new("L", (width, rows)).save(file, "JPEG", progressive=True)
    scan = segment(0xDA, b"\x01\x01\x00\x01\x05\x00")
    data = file.getvalue()[:-2] + scan * 80 + b"\xff\xd9"
    return _tiff(rows * 25 * width, 25, rows, 7, data, width=width)


def tiff_shared_headers(parts: int, pixels: int) -> bytes:
    """Strips of the same JPEG of many segments."""
    data = jpeg_with(segment(0xFE, b""), min(parts, 250_000), 8 * 8)
    rows = max(1, min(pixels // 64, 20_000))
    return _tiff(64 * rows, rows, 8, 7, data, width=8)


def tiff_reversed_strips(parts: int, pixels: int) -> bytes:
    """Strips of the same megabyte, of which libtiff reverses the bits."""
    rows = max(2, min(pixels, 20_000))
    data = zlib.compress(b"\0", 9).ljust(1_000_000, b"\0")
    reverse = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))
    return _tiff(rows, rows, 1, 8, data.translate(reverse), width=1, order=2)


def tiff_without_sizes(parts: int, pixels: int) -> bytes:
    """The same, but libtiff has to guess the sizes."""
    return tiff_reversed_strips(parts, pixels).replace(
        struct.pack("<HH", 279, 4), struct.pack("<HH", 280, 4), 1
    )


def tiff_narrow_strips(parts: int, pixels: int) -> bytes:
    """Strips of a pixel."""
    rows = max(2, min(pixels, 131_072))
    return _tiff(rows, rows, 1, 1, b"\0", width=1)


def tiff_small_tiles(parts: int, pixels: int) -> bytes:
    side = min(side_of(pixels), 510)
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, 1), (323, 4, 1, 1)]
    entries += [(324, 3, side * side, 8 + 2 + 12 * 9 + 4)]
    return directory(entries) + b"\x08\0" * max(2, side * side)


def tiff_tile_of_strips(parts: int, pixels: int) -> bytes:
    """A large tile, in the place of a strip."""
    return tiff_large_tile(parts, pixels).replace(
        struct.pack("<HH", 324, 4), struct.pack("<HH", 273, 4), 1
    )


def tiff_private_tags(parts: int, pixels: int) -> bytes:
    data = zlib.compress(bytes(side_of(pixels) ** 2), 9)
    return _tiff(pixels, 1, side_of(pixels), 8, data, more=min(parts, 1000))


def tiff_directories(parts: int, pixels: int) -> bytes:
    """Entries that lead to directories, each elsewhere."""
    side, count = side_of(pixels), min(parts, 1000)
    place = 8 + 2 + 12 * (8 + count) + 4
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (273, 4, 1, place), (277, 3, 1, 1), (278, 4, 1, side)]
    entries += [(34665, 4, 1, place + n) for n in range(count)]
    return directory(entries) + bytes(max(side * side, count))


def tiff_fax(parts: int, pixels: int) -> bytes:
    return blank(pixels, "TIFF", "1", compression="group4")
