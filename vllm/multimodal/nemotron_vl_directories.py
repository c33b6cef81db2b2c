# SPDX-License-Identifier: Apache-2.0
"""Directories of TIFF: those of TIFF files, and of the Exif data of other formats.

An entry of a directory names a place in the file. Entries may name the same bytes, and
lists of strips may name them a million times, so a small file can be much work. What is
counted here is counted once for the whole file.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

# Numbers in all entries: a list of strips takes 36 bytes for each in Python, a rational
# number a microsecond or more.
_MOST_NUMBERS, _MOST_RATIONALS = 1 << 18, 1 << 12
_MOST_ENTRIES, _MOST_DIRECTORIES = 1024, 16
# Strips or tiles. Pillow reads 64 kB for each.
_MOST_STRIPS = 1 << 16
# How often the bytes of a file may be read as values
_MOST_READ = 4
# Pixels of tiles beyond those of the image: the last tiles of a row or column
_MOST_PADDING = 1 << 22

# Bytes of a value by its type; those of strings, and of arrays of bytes
_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), strict=True))
_SIZES |= {16: 8, 17: 8, 18: 8}
_BYTES, _RATIONALS = (1, 2, 6, 7), (5, 10)
# Codes of `struct` for the types of places and sizes of strips
_UNSIGNED = {3: "H", 4: "L", 16: "Q"}

_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _SAMPLES = 256, 257, 259, 273, 277
_ROWS_OF_A_STRIP, _STRIP_SIZES, _PLANES = 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_USED = (
    *(_WIDTH, _HEIGHT, _COMPRESSION, _STRIPS, _SAMPLES, _ROWS_OF_A_STRIP),
    *(_STRIP_SIZES, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES),
)
# Of Exif: further directories, which Pillow reads of a TIFF
_DIRECTORIES = (34665, 34853, 40965)

# Compressions whose time and memory follow from the bytes and the pixels
_NONE, _JPEG = 1, 7
_COMPRESSIONS = {
    _NONE: "none",
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

    They are those of the first directory, the only one that Pillow reads here.

    Raises:
        Refused: There are too many, or they name the same bytes again and again.
    """
    header = b"Exif\0\0"  # Pillow removes two
    data = data.removeprefix(header).removeprefix(header)
    if data[:2] in (b"II", b"MM"):
        _check_directories(data)


def check_tiff(data: bytes) -> None:
    """Count the strips or tiles of the first image of a TIFF file.

    Raises:
        Refused: They are more than the image has, its tiles are too large, they share
            their bytes, or it is compressed in a way that is not read.
    """
    _check_directories(data, _DIRECTORIES)
    found: dict[int, _Entry] = {}
    for entry in _entries(data, _first(data)):
        if entry.tag in found:
            raise Refused(f"its tag {entry.tag} stands twice")
        if entry.tag in _USED:
            found[entry.tag] = entry
    numbers = {tag: _number(data, entry) for tag, entry in found.items()}
    width, height = numbers.get(_WIDTH, 0), numbers.get(_HEIGHT, 0)
    if min(width, height) < 1:
        raise Refused("it does not say its size")
    compression = numbers.get(_COMPRESSION, _NONE)
    if compression not in _COMPRESSIONS:
        raise Refused(
            f"compression {compression} of TIFF is not read; save it with Deflate"
        )
    across, down = width, min(numbers.get(_ROWS_OF_A_STRIP, height), height)
    places, sizes = _STRIPS, _STRIP_SIZES
    if not found.keys().isdisjoint((_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES)):
        if not found.keys().isdisjoint((places, sizes)):
            raise Refused("it has both strips and tiles")
        across, down = numbers.get(_TILE_WIDTH, 0), numbers.get(_TILE_HEIGHT, 0)
        places, sizes = _TILES, _TILE_SIZES
    if min(across, down) < 1:
        raise Refused("it does not say the size of its strips or tiles")
    parts = -(-width // across) * -(-height // down)
    if parts * across * down > 4 * width * height + _MOST_PADDING:
        raise Refused(f"its tiles are {across}x{down} pixels")
    if places not in found:
        return
    if numbers.get(_PLANES) == 2:
        parts *= numbers.get(_SAMPLES, 1)
    if found[places].length > min(parts, _MOST_STRIPS):
        raise Refused(f"it has {found[places].length} strips or tiles for {parts}")
    if compression != _NONE:  # else Pillow reads no more than the pixels
        _check_parts(data, found[places], found.get(sizes), compression)


def _check_parts(
    data: bytes, places: _Entry, sizes: _Entry | None, compression: int
) -> None:
    """Count the bytes of compressed strips or tiles, and the scans in them."""
    starts = _numbers(data, places)
    if not starts:
        raise Refused("it does not say where its strips or tiles are")
    # libtiff may take what is not known for the whole file.
    lengths = (sizes and _numbers(data, sizes)) or (len(data),) * places.length
    if sum(lengths) > _MOST_READ * len(data):
        raise Refused(f"its strips or tiles have {sum(lengths)} bytes together")
    if compression == _JPEG:
        scans = sum(
            data.count(b"\xff\xda", start, start + length)
            for start, length in zip(starts, lengths, strict=False)
        )
        if scans > 4 * places.length:
            raise Refused("its strips or tiles have more than four scans")


def _first(data: bytes) -> int:
    return int.from_bytes(data[8:16] if data[2:3] == b"+" else data[4:8], _order(data))


def _order(data: bytes):
    return "little" if data.startswith(b"II") else "big"


def _sign(data: bytes) -> str:
    """The order of bytes, as `struct` writes it."""
    return "<" if _order(data) == "little" else ">"


def _entries(data: bytes, place: int) -> Iterator[_Entry]:
    """The entries of a directory."""
    big = data[2:3] == b"+"
    sign = _sign(data)
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


def _check_directories(data: bytes, further: tuple[int, ...] = ()) -> None:
    """Count the entries of a directory, and of those that its tags lead to."""
    places = [_first(data)]
    entries = size = numbers = rationals = 0
    for place in places:  # it grows
        for entry in _entries(data, place):
            entries += 1
            if entry.tag in further and (to := _number(data, entry)) not in places:
                places.append(to)
            if entries > _MOST_ENTRIES or len(places) > _MOST_DIRECTORIES:
                raise Refused(f"it has {entries} entries or more in its directories")
            if entry.size > len(entry.value):
                start = int.from_bytes(entry.value, _order(data))
                if start + entry.size > len(data):  # skipped; cameras write such, too
                    continue
                size += entry.size
            if entry.kind not in _BYTES:
                numbers += entry.length
            if entry.kind in _RATIONALS:
                rationals += entry.length
    if size > _MOST_READ * len(data) or numbers > _MOST_NUMBERS:
        raise Refused(f"its directories name {size} bytes and {numbers} numbers")
    if rationals > _MOST_RATIONALS:
        raise Refused(f"its directories name {rationals} rational numbers")


def _number(data: bytes, entry: _Entry) -> int:
    """The only value of an entry, or `_NO_NUMBER`."""
    if entry.length != 1 or not 0 < entry.size <= len(entry.value):
        return _NO_NUMBER
    return int.from_bytes(entry.value[: entry.size], _order(data))


def _numbers(data: bytes, entry: _Entry) -> tuple[int, ...]:
    """The values of an entry; none if they are not there or of an unusual type."""
    values, code = entry.value, _UNSIGNED.get(entry.kind)
    if entry.size > len(values):
        start = int.from_bytes(values, _order(data))
        values = data[start : start + entry.size]
    if code is None or len(values) < entry.size:
        return ()
    return struct.unpack_from(f"{_sign(data)}{entry.length}{code}", values)
