"""Image files of many parts, each of which is legal, and what they are made of.

Scans, segments, chunks, strips, blocks, entries: each of `KINDS` makes a file of about
so many parts and pixels. `fuzz_structure.py` and `benchmarks/hostile.py` measure them.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Callable

from PIL import Image


def _side(pixels: int) -> int:
    return max(1, math.isqrt(pixels))


def _blank(pixels: int, kind: str, mode: str = "L", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (_side(pixels), _side(pixels))).save(file, kind, **options)
    return file.getvalue()


# JPEG


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def _jpeg_with(part: bytes, parts: int, pixels: int) -> bytes:
    whole = _blank(min(pixels, 65535**2), "JPEG")
    return whole[:2] + part * parts + whole[2:]


def _jpeg_scans(scan: bytes, parts: int, pixels: int, mode: str) -> bytes:
    whole = _blank(pixels, "JPEG", mode, progressive=True, subsampling=0)
    return whole[:-2] + _segment(0xDA, scan) * parts + whole[-2:]


def jpeg_scans(parts: int, pixels: int, mode: str = "RGB") -> bytes:
    """A progressive JPEG with empty scans for the first coefficients."""
    return _jpeg_scans(b"\x01\x01\x00\x01\x05\x00", parts, pixels, mode)


def jpeg_refinements(parts: int, pixels: int) -> bytes:
    """A progressive JPEG with empty scans for a bit of all its blocks."""
    scan = b"\x03\x01\x00\x02\x00\x03\x00\x00\x00\x10"
    return _jpeg_scans(scan, parts, pixels, "RGB")


def jpeg_exif_segments(parts: int, pixels: int) -> bytes:
    return _jpeg_with(_segment(0xE1, b"Exif\0\0II"), parts, pixels)


def jpeg_comments(parts: int, pixels: int) -> bytes:
    return _jpeg_with(_segment(0xFE, b""), parts, pixels)


def jpeg_fill_bytes(parts: int, pixels: int) -> bytes:
    return _jpeg_with(b"\xff", parts, pixels)


def jpeg_junk(parts: int, pixels: int) -> bytes:
    return _jpeg_with(_segment(0xFE, b"") + b"\0" * 9, parts // 10, pixels)


def jpeg_photoshop(parts: int, pixels: int) -> bytes:
    block = b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5400
    return _jpeg_with(_segment(0xED, block), max(1, parts // 5400), pixels)


def jpeg_tables(parts: int, pixels: int) -> bytes:
    return _jpeg_with(_segment(0xDB, b"\0" + b"\1" * 64), parts, pixels)


def jpeg_exif_entries(parts: int, pixels: int) -> bytes:
    exif = _directory([(274, 3, 1, 6)], min(parts, 5000), 60_000)
    return _jpeg_with(_segment(0xE1, b"Exif\0\0" + exif[:65000]), 1, pixels)


def jpeg_several_images(parts: int, pixels: int) -> bytes:
    exif = _directory([(274, 3, 1, 6)] * 1000)
    return _jpeg_with(_segment(0xE2, b"MPF\0" + exif), min(parts, 1000), pixels)


def jpeg_after_end(parts: int, pixels: int) -> bytes:
    """Exif data after an end marker, where Pillow goes on."""
    segments = _segment(0xE1, b"Exif\0\0" + bytes(994)) * max(1, parts // 1000)
    return _jpeg_with(b"\xff\xd9" + segments, 1, pixels)


def jpeg_behind_markers(parts: int, pixels: int) -> bytes:
    """Exif data where a marker without a length seems to have one."""
    segments = _segment(0xE1, b"Exif\0\0") * 6553
    return _jpeg_with(b"\xff\xf0\xff\xff" + segments, max(1, parts // 6553), pixels)


def jpeg_frames(parts: int, pixels: int) -> bytes:
    frame = struct.pack(">BHHB", 8, 9, 9, 3) + bytes(60_000)
    return _jpeg_with(_segment(0xC0, frame), max(1, parts // 20_000), pixels)


def jpeg_hidden_scans(parts: int, pixels: int) -> bytes:
    """Scans behind a marker in coded pixels that libjpeg passes over."""
    whole = _blank(pixels, "JPEG", "L", progressive=True)
    scans = _segment(0xDA, b"\x01\x01\x00\x01\x05\x00") * min(parts, 6000)
    first = _segment(0xDD, b"\0\1") + _segment(0xDA, b"\x01\x01\x00\x01\x05\x00")
    hidden = first + b"\0\xff\x02\xff\xff" + scans
    return whole[:-2] + hidden.ljust(65_600, b"\0") + whole[-2:]


# PNG


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def _png(before: bytes, pixels: int, after: bytes = b"", bits: int = 1) -> bytes:
    side = _side(pixels)
    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(-(-side * bits // 8))) * side, 9)
    parts = (_chunk(b"IHDR", header), before, _chunk(b"IDAT", rows), after)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _chunk(b"IEND")


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
    exif = _directory([(274, 3, 1, 6)], min(parts, 65_000), 2_000_000)
    return _png(_chunk(b"eXIf", exif), pixels)


def png_exif_text(parts: int, pixels: int) -> bytes:
    exif = _directory([(274, 3, 1, 6)], min(parts, 65_000), 100_000).hex().encode()
    return _png(_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + exif), pixels)


def png_texts_exif(parts: int, pixels: int) -> bytes:
    """Compressed texts of Exif data, of many lines."""
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\n" * (1 << 20), 9)
    return _png(_chunk(b"zTXt", text) * min(60, parts), pixels)


def png_text_exif(parts: int, pixels: int) -> bytes:
    """A text with the name under which Pillow keeps Exif data."""
    exif = _directory([(274, 3, 1, 6)], min(parts, 65_000), 100_000)
    return _png(_chunk(b"tEXt", b"exif\0" + exif), pixels)


def _damaged() -> bytes:
    """A megabyte, compressed, with a wrong sum at its end."""
    return zlib.compress(bytes((1 << 20) - 1), 9)[:-4] + bytes(4)


def png_damaged_texts(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"zTXt", b"k\0\0" + _damaged()) * min(parts, 20_000), pixels)


def png_profiles(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"iCCP", b"k\0\0" + _damaged()) * min(parts, 20_000), pixels)


def png_exif_chunks(parts: int, pixels: int) -> bytes:
    exif = _directory([(274, 3, 1, 6)] * 1000)
    return _png(_chunk(b"eXIf", exif) * min(parts, 1000), pixels)


def png_exif_headers(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"eXIf", b"Exif\0\0" * parts), pixels)


def png_exif_circles(parts: int, pixels: int) -> bytes:
    """Entries that lead to the directory that they are in."""
    exif = _directory([(34665, 4, 1, 8)] * min(parts, 1024))
    return _png(_chunk(b"eXIf", exif), pixels)


def _rationals(parts: int) -> bytes:
    """Exif data with an orientation and rational numbers."""
    count = min(parts, 65_000)
    entries = [(274, 3, 1, 6), (282, 5, count, 8 + 2 + 24 + 4)]
    return _directory(entries) + bytes(range(1, 9)) * count


def png_exif_rationals(parts: int, pixels: int) -> bytes:
    return _png(_chunk(b"eXIf", _rationals(parts)), pixels)


def jpeg_exif_rationals(parts: int, pixels: int) -> bytes:
    exif = _rationals(parts)
    pieces = (exif[place : place + 65_000] for place in range(0, len(exif), 65_000))
    segments = b"".join(_segment(0xE1, b"Exif\0\0" + piece) for piece in pieces)
    return _jpeg_with(segments, 1, pixels)


def png_grey_levels(parts: int, pixels: int) -> bytes:
    return _png(b"", pixels, bits=16)


# GIF


def _gif_with(part: bytes, parts: int, pixels: int) -> bytes:
    whole = _blank(min(pixels, 65535**2), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 128 else 0)
    return whole[:start] + part * parts + whole[start:]


def gif_comments(parts: int, pixels: int) -> bytes:
    return _gif_with(b"!\xfe\x01x\0", parts, pixels)


def gif_long_comment(parts: int, pixels: int) -> bytes:
    whole = _gif_with(b"", 0, pixels)
    start = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 128 else 0)
    blocks = (b"\xff" + b"x" * 255) * (parts // 256)
    return whole[:start] + b"!\xfe" + blocks + b"\0" + whole[start:]


def gif_unknown_bytes(parts: int, pixels: int) -> bytes:
    return _gif_with(b"\x01", parts, pixels)


def gif_extensions(parts: int, pixels: int) -> bytes:
    return _gif_with(b"!\x01\0", parts, pixels)


# TIFF


def _directory(
    entries: list[tuple[int, int, int, int]], more: int = 0, size: int = 0
) -> bytes:
    """A TIFF of one directory; `more` entries name the same `size` bytes after it."""
    count = len(entries) + more
    end = 8 + 2 + 12 * count + 4
    entries = entries + [(400 + n, 7, size, end) for n in range(more)]
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, count)
    return head + packed + bytes(4) + bytes(size)


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
    side = _side(pixels)
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
    return _directory(entries) + lists + data


def tiff_strips(parts: int, pixels: int) -> bytes:
    """More strips than the image has."""
    return _tiff(pixels, max(2, parts // 8), 1, 1, bytes(_side(pixels)))


def tiff_short_strips(parts: int, pixels: int) -> bytes:
    """A strip of each row, all with the same bytes."""
    return _tiff(pixels, max(2, _side(pixels)), 1, 1, bytes(_side(pixels)))


def tiff_repeated_strips(parts: int, pixels: int) -> bytes:
    """Strips of nearly the whole image, over and over."""
    side = min(_side(pixels), 2000)
    rows = max(1, side - 1)
    return _tiff(side * side, max(2, parts // 8), rows, 1, bytes(side * rows))


def tiff_deflate_strips(parts: int, pixels: int) -> bytes:
    row = zlib.compress(bytes(_side(pixels)), 9)
    return _tiff(pixels, max(2, _side(pixels)), 1, 8, row)


def tiff_large_tile(parts: int, pixels: int) -> bytes:
    """A tile of many pixels for an image of a few."""
    side = 16 * max(1, _side(pixels) // 16)
    data = zlib.compress(bytes(side * side), 9)
    entries = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8)]
    entries += [(262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side)]
    entries += [(324, 4, 1, 8 + 2 + 12 * 10 + 4), (325, 4, 1, len(data))]
    return _directory(entries) + data


def tiff_entries(parts: int, pixels: int) -> bytes:
    side = _side(pixels)
    entries = [(256, 4, 1, side), (257, 4, 1, side)]
    return _directory(entries, min(parts, 65_000), 2_000_000)


def tiff_jpeg_scans(parts: int, pixels: int) -> bytes:
    return _tiff(pixels, 1, _side(pixels), 7, jpeg_scans(parts, pixels, "L"))


def tiff_shared_scans(parts: int, pixels: int) -> bytes:
    """Strips of the same JPEG of 85 scans."""
    width, rows = max(1, _side(pixels)), max(1, _side(pixels) // 25)
    file = io.BytesIO()
    Image.new("L", (width, rows)).save(file, "JPEG", progressive=True)
    scan = _segment(0xDA, b"\x01\x01\x00\x01\x05\x00")
    data = file.getvalue()[:-2] + scan * 80 + b"\xff\xd9"
    return _tiff(rows * 25 * width, 25, rows, 7, data, width=width)


def tiff_shared_headers(parts: int, pixels: int) -> bytes:
    """Strips of the same JPEG of many segments."""
    data = _jpeg_with(_segment(0xFE, b""), min(parts, 250_000), 8 * 8)
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
    side = min(_side(pixels), 510)
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, 1), (323, 4, 1, 1)]
    entries += [(324, 3, side * side, 8 + 2 + 12 * 9 + 4)]
    return _directory(entries) + b"\x08\0" * max(2, side * side)


def tiff_tile_of_strips(parts: int, pixels: int) -> bytes:
    """A large tile, in the place of a strip."""
    return tiff_large_tile(parts, pixels).replace(
        struct.pack("<HH", 324, 4), struct.pack("<HH", 273, 4), 1
    )


def tiff_private_tags(parts: int, pixels: int) -> bytes:
    data = zlib.compress(bytes(_side(pixels) ** 2), 9)
    return _tiff(pixels, 1, _side(pixels), 8, data, more=min(parts, 1000))


def tiff_directories(parts: int, pixels: int) -> bytes:
    """Entries that lead to directories, each elsewhere."""
    side, count = _side(pixels), min(parts, 1000)
    place = 8 + 2 + 12 * (8 + count) + 4
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 1), (273, 4, 1, place), (277, 3, 1, 1), (278, 4, 1, side)]
    entries += [(34665, 4, 1, place + n) for n in range(count)]
    return _directory(entries) + bytes(max(side * side, count))


def tiff_fax(parts: int, pixels: int) -> bytes:
    return _blank(pixels, "TIFF", "1", compression="group4")


# WebP and BMP


def _webp_with(part: bytes, parts: int, pixels: int) -> bytes:
    side = min(_side(pixels), 16383)
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "WEBP", lossless=True, method=0)
    size = (side - 1).to_bytes(3, "little")
    flags = b"\x08\0\0\0" if part.startswith(b"EXIF") else bytes(4)
    head = b"VP8X" + struct.pack("<I", 10) + flags + size + size
    body = head + part * (not part.startswith(b"EXIF") and parts)
    body += file.getvalue()[12:] + part * part.startswith(b"EXIF")
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_chunks(parts: int, pixels: int) -> bytes:
    return _webp_with(b"prVt" + bytes(4), parts, pixels)


def webp_exif_entries(parts: int, pixels: int) -> bytes:
    exif = _directory([(274, 3, 1, 6)], min(parts, 65_000), 2_000_000)
    return _webp_with(b"EXIF" + struct.pack("<I", len(exif)) + exif, 1, pixels)


def webp_exif_chunks(parts: int, pixels: int) -> bytes:
    exif = _directory([(274, 3, 1, 6)] * 1000)
    chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif
    return _webp_with(chunk * min(parts, 1000), 1, pixels)


def webp_frames(parts: int, pixels: int) -> bytes:
    """Three frames, of which the first is read."""
    side = min(_side(pixels), 16383)
    first, *others = (Image.new("L", (side, side), level) for level in (0, 1, 2))
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others)
    return file.getvalue()


def bmp_runs(parts: int, pixels: int) -> bytes:
    """Run-length encoded; each row ends after one pixel."""
    side = _side(pixels)
    rows = b"\1\0\0\0" * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    offset = 14 + len(head) + 1024
    file = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    return file + head + bytes(range(256)) * 4 + rows


# Formats that are read only if a setting says so


def fits(parts: int, pixels: int) -> bytes:
    """A compressed table, of which Pillow visits the pixels one by one."""
    side = _side(pixels)
    cards = ["XTENSION= 'BINTABLE'", "ZIMAGE  = T", "ZCMPTYPE= 'GZIP_1  '"]
    cards += ["BITPIX  = 8", "NAXIS   = 0", "ZBITPIX = 8", "ZNAXIS  = 2"]
    cards += [f"ZNAXIS1 = {side}", f"ZNAXIS2 = {side}", "END"]
    first = "SIMPLE  = T".ljust(80) + "BITPIX  = 8".ljust(80) + "NAXIS   = 0".ljust(80)
    head = (first + "END".ljust(80)).ljust(2880)
    table = "".join(card.ljust(80) for card in cards).ljust(2880)
    data = gzip.compress(bytes(4 * side * side), 9)
    return (head + table).encode() + data + bytes(-len(data) % 2880)


def qoi(parts: int, pixels: int) -> bytes:
    """Bytes that are one pixel each, which Pillow decodes in Python."""
    side = _side(min(pixels, parts))
    head = b"qoif" + struct.pack(">IIBB", side, side, 3, 0)
    return head + b"\xaa" * side * side + bytes(7) + b"\x01"


def psd(parts: int, pixels: int) -> bytes:
    side = _side(pixels)
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 1, side, side, 8, 1)
    resources = (b"8BIM" + b"\x04\x00" + b"\0\0" + bytes(4)) * parts
    sizes = struct.pack(">II", 0, len(resources))
    return head + sizes + resources + bytes(4) + bytes(2) + bytes(min(pixels, 10**6))


def jpeg2000(parts: int, pixels: int) -> bytes:
    return _blank(min(pixels, 4_000_000), "JPEG2000")


def avif(parts: int, pixels: int) -> bytes:
    return _blank(min(pixels, 4_000_000), "AVIF", "RGB", speed=10)


def icns(parts: int, pixels: int) -> bytes:
    """Blocks that name nothing, and an icon."""
    icon = _blank(1 << 20, "PNG", "RGB")
    blocks = (b"junk" + struct.pack(">I", 8)) * parts
    blocks += b"ic10" + struct.pack(">I", 8 + len(icon)) + icon
    return b"icns" + struct.pack(">I", 8 + len(blocks)) + blocks


KINDS: dict[str, Callable[[int, int], bytes]] = {
    build.__name__: build
    for build in (
        *(
            jpeg_scans,
            jpeg_refinements,
            jpeg_exif_segments,
            jpeg_comments,
            jpeg_fill_bytes,
            jpeg_junk,
        ),
        *(jpeg_photoshop, jpeg_tables, jpeg_exif_entries, jpeg_exif_rationals),
        *(
            jpeg_several_images,
            jpeg_after_end,
            jpeg_behind_markers,
            jpeg_frames,
            jpeg_hidden_scans,
        ),
        *(png_chunks, png_chunks_after, png_texts, png_empty_data, png_exif_entries),
        *(png_exif_text, png_texts_exif, png_text_exif, png_damaged_texts),
        *(png_profiles, png_exif_headers, png_exif_circles, png_exif_rationals),
        *(png_exif_chunks, png_grey_levels),
        *(gif_comments, gif_long_comment, gif_unknown_bytes, gif_extensions),
        *(tiff_strips, tiff_short_strips, tiff_repeated_strips, tiff_deflate_strips),
        *(tiff_large_tile, tiff_entries, tiff_jpeg_scans, tiff_shared_scans),
        *(tiff_shared_headers, tiff_reversed_strips, tiff_without_sizes),
        *(tiff_narrow_strips, tiff_small_tiles, tiff_tile_of_strips),
        *(tiff_private_tags, tiff_directories, tiff_fax),
        *(webp_chunks, webp_exif_entries, webp_exif_chunks, webp_frames, bmp_runs),
        *(fits, qoi, psd, jpeg2000, avif, icns),
    )
}
