#!/usr/bin/env python3
"""Fuzzing of the code that reads images by the structure of files.

    python tools/fuzz_structure.py --seconds 600

`fuzz_pictures.py` changes bytes; this makes files of many parts, each of which is
legal: scans, segments, chunks, strips, blocks, entries. Numbers of parts and of pixels
are drawn at random, and the costliest file of each kind is searched from there. Each
file is read in a process of its own. The table shows the costliest file of each kind:
its bytes, the seconds of CPU time, the peak of memory, and the answer. Add what is
worse than the rest to MANY_PARTS of tests/support/bad_files.py.
"""

import argparse
import gzip
import io
import math
import multiprocessing
import random
import resource
import struct
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image

# Requests of more bytes than this are the proxy's to refuse.
MOST_BYTES = 6_000_000
MOST_PIXELS = 178_956_970


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


def _tiff(pixels: int, strips: int, rows: int, compression: int, data: bytes) -> bytes:
    side, place = _side(pixels), 8 + 2 + 12 * 9 + 4
    lists = b"".join(
        struct.pack("<I", value) * strips for value in (place + 8 * strips, len(data))
    )
    if strips == 1:
        offsets, sizes, lists = place, len(data), b""
    else:
        offsets, sizes = place, place + 4 * strips
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8)]
    entries += [(259, 3, 1, compression), (262, 3, 1, 1), (273, 4, strips, offsets)]
    entries += [(277, 3, 1, 1), (278, 4, 1, rows), (279, 4, strips, sizes)]
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
        *(jpeg_photoshop, jpeg_tables, jpeg_exif_entries),
        *(png_chunks, png_chunks_after, png_texts, png_empty_data, png_exif_entries),
        *(png_exif_text, png_grey_levels),
        *(gif_comments, gif_long_comment, gif_unknown_bytes, gif_extensions),
        *(tiff_strips, tiff_short_strips, tiff_repeated_strips, tiff_deflate_strips),
        *(tiff_large_tile, tiff_entries, tiff_jpeg_scans, tiff_fax),
        *(webp_chunks, webp_exif_entries, webp_frames, bmp_runs),
        *(fits, qoi, psd, jpeg2000, avif, icns),
    )
}


class Cost(NamedTuple):
    """What reading a file took.

    Args:
        seconds: CPU time.
        peak: Bytes of memory at most.
        answer: Size of the image, or why it is not read.
    """

    seconds: float
    peak: int
    answer: str


def measure(read: Callable[[bytes], object], data: bytes, limit: int = 60) -> Cost:
    """Read a file in a process of its own, for at most so many seconds of CPU time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before, start = _memory("VmRSS"), time.process_time()
        try:
            answer = str(read(data))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        theirs.send((time.process_time() - start, _memory("VmHWM") - before, answer))

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        return Cost(*ours.recv())
    except EOFError:
        return Cost(limit, 0, f"ended after {limit} s")
    finally:
        process.join()


def _memory(key: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return 1024 * int(line.split()[1])


def read(data: bytes) -> str:
    """Load a file as a server does."""
    from vllm.multimodal.media.image import ImageMediaIO

    from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO

    image = CheckedImageIO(ImageMediaIO(), ()).load_bytes(data)
    return "{}x{}".format(*image.media.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="default: 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS])
    options = parser.parse_args()
    rng = random.Random(options.seed)
    read(KINDS["png_chunks"](1, 1))  # imports before the forks
    worst: dict[str, tuple[float, int, int, int, Cost]] = {}
    end = time.monotonic() + options.seconds
    tried = 0
    while time.monotonic() < end:
        kind = rng.choice(options.kinds)
        parts, pixels = 10 ** rng.uniform(0, 7), 10 ** rng.uniform(0, 8.25)
        if kind in worst and rng.random() < 0.5:
            factor = 2 ** rng.gauss(0, 1), 2 ** rng.gauss(0, 1)
            parts, pixels = worst[kind][1] * factor[0], worst[kind][2] * factor[1]
        parts, pixels = int(parts), min(int(pixels), MOST_PIXELS)
        data = KINDS[kind](max(1, min(parts, 10**7)), max(1, pixels))
        if len(data) > MOST_BYTES:
            continue
        tried += 1
        cost = measure(read, data)
        if kind not in worst or cost.seconds > worst[kind][0]:
            worst[kind] = (cost.seconds, parts, pixels, len(data), cost)
    print(f"{tried} files")
    for kind, (seconds, parts, pixels, size, cost) in sorted(
        worst.items(), key=lambda item: -item[1][0]
    ):
        print(
            f"{kind:22} {parts:9} parts {pixels:11} pixels {size:9} B {seconds:7.2f} s "
            f"{cost.peak / 1e6:6.0f} MB  {cost.answer[:80]}"
        )


if __name__ == "__main__":
    main()
