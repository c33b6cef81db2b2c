# SPDX-License-Identifier: Apache-2.0
"""Formats of image files: which are read, and how many parts a file may have.

A few bytes of a file can cost its reader seconds: an empty scan of a JPEG is ten bytes,
and a pass over all pixels. So the format is decided from the first bytes, and the parts
that decide the cost are counted, before anything of the file is decoded. Counting is
linear in the bytes, and stops at the limits. They are far above what programs write.

Nothing here imports Pillow or vLLM.
"""

import re
import zlib
from collections.abc import Callable, Iterator

from .nemotron_vl_directories import Refused, check_exif, check_tiff, is_tiff

__all__ = ["FORMATS", "Refused", "check_structure", "format_of"]

# Chunks, segments or blocks: Pillow needs a few microseconds for each.
_MOST_PARTS = 4096
_BYTES_OF_A_PART = 1024  # large files have more: one part more for so many bytes
# Chunks of a PNG that Pillow decompresses, to a megabyte each, and texts of Exif data
_COMPRESSED, _MOST_COMPRESSED = (b"iCCP", b"iTXt", b"zTXt"), 64
_EXIF_TEXTS = (b"exif\0", b"Raw profile type exif\0")
_LONGEST_TEXT = 1 << 20
# Chunks of Exif data, of which Pillow reads one, and segments, which it joins
_MOST_EXIF, _MOST_EXIF_SEGMENTS = 4, 16
# Of a JPEG: image resources in its Photoshop data, and bytes of quantisation tables.
# Pillow takes them apart in Python.
_MOST_RESOURCES, _MOST_TABLES = 4096, 1 << 16
# Of a JPEG. A progressive one has ten or so. Each takes time for all pixels.
_MOST_SCANS = 100
_MOST_SCANNED_PIXELS = 1 << 31

# Markers of JPEG: frame headers for 8 bits with Huffman codes (baseline, extended,
# progressive); others that a frame can have.
_FRAMES = (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xDE)
_SCAN, _END, _TABLES, _APP1, _APP2, _APP13 = 0xDA, 0xD9, 0xDB, 0xE1, 0xE2, 0xED
# Those that Pillow passes over in a header, without the length after them: libjpeg
# reads no such header.
_NOT_IN_HEADERS = (0xC8, 0xD8, _END, *range(0xF0, 0xFE))
_MARKER = re.compile(rb"\xff[^\x00-\xbf\xd0-\xd7\xff]")  # those that stand for a part


def format_of(data: bytes) -> str | None:
    """Pillow's name of a file's format, by its first bytes; `None` if it is another.

    A file with several images, such as MPO, is a JPEG here.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if is_tiff(data):
        return "TIFF"
    return "BMP" if data.startswith(b"BM") else None


def check_structure(data: bytes) -> None:
    """Count the parts of a file of one of `FORMATS`.

    What is damaged is left to the reader of the format.

    Raises:
        Refused: It has too many parts, or one that would be slow to read.
    """
    if (kind := format_of(data)) is not None:
        _CHECKS[kind](data)


def _most_parts(data: bytes) -> int:
    return _MOST_PARTS + len(data) // _BYTES_OF_A_PART


def _check_count(count: int, most: int, parts: str) -> None:
    if count > most:
        raise Refused(f"it has more than {most} {parts}; save it again")


def _check_png(data: bytes) -> None:
    most, place, count, compressed, exif = _most_parts(data), 8, 0, 0, 0
    while place + 8 <= len(data):
        count += 1
        _check_count(count, most, "chunks")
        size = int.from_bytes(data[place : place + 4])
        name, place = data[place + 4 : place + 8], place + 8
        if name == b"IEND":
            return
        if name in _COMPRESSED:
            compressed += 1
            _check_count(compressed, _MOST_COMPRESSED, "compressed chunks")
        if name == b"eXIf" or data.startswith(_EXIF_TEXTS, place):
            exif += 1
            _check_count(exif, _MOST_EXIF, "chunks of Exif data")
            content = data[place : place + size]
            check_exif(content if name == b"eXIf" else _exif_of_text(name, content))
        place += size + 4


def _exif_of_text(name: bytes, text: bytes) -> bytes:
    """Exif data as they are, or as digits of ImageMagick's after three lines."""
    key, _, text = text.partition(b"\0")
    if name == b"iTXt":
        raise Refused("it has Exif data in an iTXt chunk")
    if key == b"exif":
        return text
    try:
        if name == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], _LONGEST_TEXT)
        digits = text.split(b"\n", 3)[3:]
        return bytes.fromhex(b"".join(digits).replace(b"\n", b"").decode("latin-1"))
    except (ValueError, zlib.error):  # Pillow does not read it either
        return b""


def _check_webp(data: bytes) -> None:
    most, place, count, exif = _most_parts(data), 12, 0, 0
    while place + 8 <= len(data):
        count += 1
        _check_count(count, most, "chunks")
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"EXIF":
            exif += 1
            _check_count(exif, _MOST_EXIF, "chunks of Exif data")
            check_exif(data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2


def _check_gif(data: bytes) -> None:
    """Count what is before the first image; what follows it is not read."""
    flags = data[10] if len(data) > 10 else 0
    place, count = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0), 0
    while place < len(data) and data[place] not in b",;":
        count += 1
        _check_count(count, _MOST_PARTS, "blocks before its first image")
        if data[place] != ord("!"):
            place += 1
            continue
        place += 2
        while place < len(data) and (size := data[place]):
            count += 1
            _check_count(count, _MOST_PARTS, "blocks before its first image")
            place += 1 + size
        place += 1


def _check_bmp(data: bytes) -> None:
    header = int.from_bytes(data[14:18], "little")
    if header >= 40 and int.from_bytes(data[30:34], "little") in (1, 2):
        raise Refused("it is a run-length encoded BMP; save it as a PNG")


def _check_jpeg(data: bytes) -> None:
    most = _most_parts(data)
    frames = scans = pixels = tables = resources = multiple = 0
    exif: list[bytes] = []
    for count, (marker, start, end) in enumerate(_segments(data), 1):
        _check_count(count, most, "segments")
        if marker in _OTHER_FRAMES:
            raise Refused("it is a lossless, hierarchical or arithmetic-coded JPEG")
        if marker in _FRAMES:
            frames += not scans
            _check_count(frames, 1, "frame")
            height = int.from_bytes(data[start + 1 : start + 3])
            pixels = max(pixels, height * int.from_bytes(data[start + 3 : start + 5]))
        elif marker == _SCAN:
            scans += 1
            _check_count(scans, _MOST_SCANS, "scans")
            if scans > 4 and scans * pixels > _MOST_SCANNED_PIXELS:
                raise Refused(
                    f"it has {scans} scans or more of {pixels} pixels; save it as a "
                    "baseline JPEG"
                )
        elif marker == _TABLES:
            tables += end - start
            _check_count(tables, _MOST_TABLES, "bytes of quantisation tables")
        elif marker == _APP1 and data.startswith(b"Exif\0\0", start, end):
            exif.append(data[start + 6 : end])
            _check_count(len(exif), _MOST_EXIF_SEGMENTS, "segments of Exif data")
        elif marker == _APP2 and data.startswith(b"MPF\0", start, end):
            multiple += 1
            _check_count(multiple, _MOST_EXIF, "segments of several images")
            check_exif(data[start + 4 : end])
        elif marker == _APP13:
            resources += data.count(b"8BIM", start, end)
            _check_count(resources, _MOST_RESOURCES, "resources in its Photoshop data")
    check_exif(b"".join(exif))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the content of each segment up to the end marker.

    Bytes between segments are skipped: coded pixels, restart markers and others.
    Pillow skips those before the first scan one by one.
    """
    place, skipped, scanned = 2, 0, False
    while (found := _MARKER.search(data, place)) is not None:
        marker, start = data[found.start() + 1], found.end()
        if not scanned:
            skipped += found.start() - place
            _check_count(skipped, _MOST_PARTS, "bytes between its segments")
            if marker in _NOT_IN_HEADERS:
                raise Refused(f"it has the marker FF{marker:02X} before its first scan")
        elif marker == _END:
            return
        size = max(2, int.from_bytes(data[start : start + 2]))
        place = start + size
        scanned = scanned or marker == _SCAN
        yield marker, start + 2, place


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "PNG": _check_png,
    "JPEG": _check_jpeg,
    "WEBP": _check_webp,
    "GIF": _check_gif,
    "TIFF": check_tiff,
    "BMP": _check_bmp,
}

# The formats that are read, by Pillow's names
FORMATS = (*_CHECKS,)
