# SPDX-License-Identifier: Apache-2.0
"""Directories of TIFF: those of TIFF files, and of the Exif data of other formats.

An entry of a directory names a place in the file. Entries may name the same bytes, and
lists of strips may name them a million times, so a small file can be much work.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

# Numbers in all entries: a list of strips takes 36 bytes for each in Python.
_MOST_NUMBERS = 1 << 18
_MOST_ENTRIES = 1024
# How often the bytes of a file may be read as values
_MOST_READ = 4
# Pixels of tiles beyond those of the image: the last tiles of a row or column
_MOST_PADDING = 1 << 22

# Bytes of a value by its type; those of strings, and of arrays of bytes
_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), strict=True))
_SIZES |= {16: 8, 17: 8, 18: 8}
_BYTES = (1, 2, 6, 7)

_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _SAMPLES = 256, 257, 259, 273, 277
_ROWS_OF_A_STRIP, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 278, 284, 322, 323, 324
# Of Exif: further directories
_DIRECTORIES, _DEEPEST = (34665, 34853, 40965), 2

# Compressions whose time and memory follow from the bytes and the pixels
_JPEG = 7
_COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    _JPEG: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
}
_NO_NUMBER = -1


class Refused(ValueError):
    """A file that is not read, and why; part of a sentence."""


class _Entry(NamedTuple):
    tag: int
    kind: int
    length: int
    value: bytes

    @property
    def size(self) -> int:
        return self.length * _SIZES.get(self.kind, 0)


def is_tiff(data: bytes) -> bool:
    """Whether a file begins like a TIFF, or a BigTIFF that Pillow reads."""
    return data.startswith((b"II*\0", b"MM\0*", b"II+\0"))


def check_exif(data: bytes) -> None:
    """Count the entries of Exif data, with or without their header.

    Raises:
        Refused: There are too many, or they name the same bytes again and again.
    """
    while data.startswith(b"Exif\0\0"):
        data = data[6:]
    if data[:2] in (b"II", b"MM"):
        _check_directories(data, _first(data), _DEEPEST)


def check_tiff(data: bytes) -> None:
    """Count the strips or tiles of the first image of a TIFF file.

    Raises:
        Refused: They are more than the image has, its tiles are too large, or it is
            compressed in a way that is not read.
    """
    check_exif(data)
    found: dict[int, _Entry] = {}
    for entry in _entries(data, _first(data)):
        if entry.tag in found:
            raise Refused(f"its tag {entry.tag} stands twice")
        found[entry.tag] = entry
    numbers = {tag: _number(data, entry) for tag, entry in found.items()}
    width, height = numbers.get(_WIDTH, 0), numbers.get(_HEIGHT, 0)
    if min(width, height) < 1:
        raise Refused("it does not say its size")
    compression = numbers.get(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS:
        raise Refused(
            f"compression {compression} of TIFF is not read; save it with Deflate"
        )
    planes = numbers.get(_SAMPLES, 1) if numbers.get(_PLANES) == 2 else 1
    for tag in (_STRIPS, _TILES):
        if tag not in found:
            continue
        if tag == _STRIPS:
            across, down = width, numbers.get(_ROWS_OF_A_STRIP, height)
        else:
            across, down = numbers.get(_TILE_WIDTH, 0), numbers.get(_TILE_HEIGHT, 0)
        if min(across, down) < 1:
            raise Refused("it does not say the size of its strips or tiles")
        down = min(down, height) if tag == _STRIPS else down
        parts = -(-width // across) * -(-height // down)
        if found[tag].length > parts * planes:
            raise Refused(f"it has {found[tag].length} strips or tiles for {parts}")
        if parts * across * down > 4 * width * height + _MOST_PADDING:
            raise Refused(f"its tiles are {across}x{down} pixels")
        if compression == _JPEG and data.count(b"\xff\xda") > 4 * parts * planes:
            raise Refused("its strips or tiles have more than four scans")


def _first(data: bytes) -> int:
    return int.from_bytes(data[8:16] if data[2:3] == b"+" else data[4:8], _order(data))


def _order(data: bytes):
    return "little" if data.startswith(b"II") else "big"


def _entries(data: bytes, place: int) -> Iterator[_Entry]:
    """The entries of a directory."""
    big = data[2:3] == b"+"
    sign = "<" if data.startswith(b"II") else ">"
    head = struct.Struct(sign + ("Q" if big else "H"))
    layout = struct.Struct(sign + ("HHQ8s" if big else "HHL4s"))
    if not 0 <= place <= len(data) - head.size:
        return
    (count,) = head.unpack_from(data, place)
    if count > _MOST_ENTRIES:
        raise Refused(f"a directory of it has {count} entries")
    place += head.size
    for _ in range(count):
        if place + layout.size > len(data):
            return
        yield _Entry(*layout.unpack_from(data, place))
        place += layout.size


def _check_directories(data: bytes, place: int, deeper: int) -> None:
    size = numbers = 0
    for entry in _entries(data, place):
        if entry.tag in _DIRECTORIES and deeper:
            _check_directories(data, _number(data, entry), deeper - 1)
        if entry.size > len(entry.value):
            start = int.from_bytes(entry.value, _order(data))
            if start + entry.size > len(data):  # skipped, as cameras write such, too
                continue
            size += entry.size
        if entry.kind not in _BYTES:
            numbers += entry.length
    if size > _MOST_READ * len(data) or numbers > _MOST_NUMBERS:
        raise Refused(f"a directory of it names {size} bytes and {numbers} numbers")


def _number(data: bytes, entry: _Entry) -> int:
    """The only value of an entry, or `_NO_NUMBER`."""
    if entry.length != 1 or not 0 < entry.size <= len(entry.value):
        return _NO_NUMBER
    return int.from_bytes(entry.value[: entry.size], _order(data))
