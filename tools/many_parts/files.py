"""What the files of many parts are made of."""

import io
import math
import struct

from PIL import Image


def side_of(pixels: int) -> int:
    return max(1, math.isqrt(pixels))


def blank(pixels: int, kind: str, mode: str = "L", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side_of(pixels), side_of(pixels))).save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def jpeg_with(part: bytes, parts: int, pixels: int) -> bytes:
    whole = blank(min(pixels, 65535**2), "JPEG")
    return whole[:2] + part * parts + whole[2:]


def rationals(parts: int) -> bytes:
    """Exif data with an orientation and rational numbers."""
    count = min(parts, 65_000)
    entries = [(274, 3, 1, 6), (282, 5, count, 8 + 2 + 24 + 4)]
    return directory(entries) + bytes(range(1, 9)) * count


def directory(
    entries: list[tuple[int, int, int, int]], more: int = 0, size: int = 0
) -> bytes:
    """A TIFF of one directory; `more` entries name the same `size` bytes after it."""
    count = len(entries) + more
    end = 8 + 2 + 12 * count + 4
    entries = entries + [(400 + n, 7, size, end) for n in range(more)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, count)
    return head + packed + bytes(4) + bytes(size)
