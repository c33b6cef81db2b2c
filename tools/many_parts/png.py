"""PNG files of many parts."""

import struct
import zlib

from .files import directory, rationals, side_of


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def _png(before: bytes, pixels: int, after: bytes = b"", bits: int = 1) -> bytes:
    side = side_of(pixels)
    rows = zlib.compress((b"\0" + bytes(-(-side * bits // 8))) * side, 9)
    return _file(side, bits, 0, before + _chunk(b"IDAT", rows) + after)


def _file(side: int, bits: int, colours: int, chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, bits, colours, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    return start + chunks + _chunk(b"IEND")


def _rgb(pixels: int, more: bytes = b"") -> tuple[int, bytes]:
    """Side and compressed rows of an image of the filter that takes longest."""
    side = side_of(pixels)
    return side, zlib.compress((b"\4" + bytes(3 * side)) * side + more, 1)


def png_short_data(parts: int, pixels: int) -> bytes:
    """Pixels in chunks of a byte, and in a last one."""
    side, rows = _rgb(pixels)
    count = min(parts, len(rows) - 1)
    short = b"".join(_chunk(b"IDAT", rows[at : at + 1]) for at in range(count))
    return _file(side, 8, 2, short + _chunk(b"IDAT", rows[count:]))


def png_a_byte_more(parts: int, pixels: int) -> bytes:
    """Pixels that are decoded twice, because something follows them."""
    side, rows = _rgb(pixels, b"\0")
    return _file(side, 8, 2, _chunk(b"IDAT", rows))


def png_empty_blocks(parts: int, pixels: int) -> bytes:
    """Pixels after compressed blocks of no bytes, of ten bits each."""
    side, rows = _rgb(pixels)
    eight = sum(2 << 10 * place for place in range(8)).to_bytes(10, "little")
    blocks = eight * (parts // 8)
    return _file(side, 8, 2, _chunk(b"IDAT", rows[:2] + blocks + rows[2:]))


def png_chunks(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"prVt") * parts, pixels)


def png_chunks_after(parts: int, pixels: int) -> bytes:
    return _png(b"", pixels, _chunk(b"prVt") * parts)


def png_texts(parts: int, pixels: int) -> bytes:
    text = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20), 9))
    return _png(text * min(60, parts), pixels)


def png_empty_data(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"IDAT") * parts, pixels)


def png_exif_entries(parts: int, pixels: int) -> bytes:
    exif = directory([(274, 3, 1, 6)], min(parts, 65_000), 2_000_000)
    return _png(_chunk(b"eXIf", exif), pixels)


def png_exif_text(parts: int, pixels: int) -> bytes:
    exif = directory([(274, 3, 1, 6)], min(parts, 65_000), 100_000).hex().encode()
    return _png(_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + exif), pixels)


def png_texts_exif(parts: int, pixels: int) -> bytes:
    """Compressed texts of Exif data, of many lines."""
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\n" * (1 << 20), 9)
    return _png(_chunk(b"zTXt", text) * min(60, parts), pixels)


def png_text_exif(parts: int, pixels: int) -> bytes:
    """A text with the name under which Pillow keeps Exif data."""
    exif = directory([(274, 3, 1, 6)], min(parts, 65_000), 100_000)
    return _png(_chunk(b"tEXt", b"exif\0" + exif), pixels)


def _damaged() -> bytes:
    """A megabyte, compressed, with a wrong sum at its end."""
    return zlib.compress(bytes((1 << 20) - 1), 9)[:-4] + bytes(4)


def png_damaged_texts(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"zTXt", b"k\0\0" + _damaged()) * min(parts, 20_000), pixels)


def png_profiles(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"iCCP", b"k\0\0" + _damaged()) * min(parts, 20_000), pixels)


def png_exif_chunks(parts: int, pixels: int) -> bytes:
    exif = directory([(274, 3, 1, 6)] * 1000)
    return _png(_chunk(b"eXIf", exif) * min(parts, 1000), pixels)


def png_exif_headers(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"eXIf", b"Exif\0\0" * parts), pixels)


def png_exif_circles(parts: int, pixels: int) -> bytes:
    """Entries that lead to the directory that they are in."""
    exif = directory([(34665, 4, 1, 8)] * min(parts, 1024))
    return _png(_chunk(b"eXIf", exif), pixels)


def png_exif_rationals(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"eXIf", rationals(parts)), pixels)


def png_grey_levels(parts: int, pixels: int) -> bytes:
    return _png(b"", pixels, bits=16)
