"""Files that are no images or that are damaged, and what a refusal says of each."""

import struct
import zlib

import numpy as np
from PIL import Image

from many_parts import KINDS
from support.chat import saved

# Reasons, in lower case
OTHER_KIND = "it is none of png, jpeg, webp, gif, tiff, bmp by its first bytes"
TRUNCATED = "truncated"

# Content, declared type and cause
BAD_FILES: dict[str, tuple[bytes, str, str]] = {}

# Malformed files in the formats that Pillow writes and vLLM opens

SMALL = Image.linear_gradient("L").resize((60, 40))
MODES = {"MSP": "1", "XBM": "1", "BLP": "P", "GIF": "P"}
FORMATS = (
    *("AVIF", "BLP", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG"),
    *("JPEG2000", "MPO", "MSP", "PCX", "PNG", "PPM", "QOI", "SGI", "SPIDER"),
    *("TGA", "TIFF", "WEBP", "XBM"),
)
READ = ("BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
OTHERS = dict.fromkeys(set(FORMATS) - set(READ), OTHER_KIND)
REASONS = {
    "half": OTHERS
    | dict.fromkeys(READ, TRUNCATED)
    | {"WEBP": "could not create decoder object"},
    "head": OTHERS
    | dict.fromkeys(READ, TRUNCATED)
    | {"GIF": "cannot be opened as gif", "WEBP": "could not create decoder object"}
    | {"TIFF": "it does not say its size"},
    "zeros": OTHERS
    | dict.fromkeys(READ, "cannot be opened as")
    | {"BMP": "unsupported bmp header", "TIFF": "it does not say its size"},
    "without head": dict.fromkeys(FORMATS, OTHER_KIND),
}

for fmt in FORMATS:
    whole = saved(SMALL.convert(MODES.get(fmt, "RGB")), fmt)
    for damage, data in {
        "half": whole[: len(whole) // 2],
        "head": whole[:24],
        "zeros": whole[:12] + bytes(len(whole) - 12),
        "without head": whole[len(whole) // 2 :],
    }.items():
        kind = f"image/{fmt.lower()}"
        BAD_FILES[f"{fmt} {damage}"] = (data, kind, REASONS[damage][fmt])

# Decompression bombs: the header declares 50,000 x 50,000 pixels

SIDE = 50_000


def png_chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def png_bomb(side: int) -> bytes:
    """One bit per pixel; the pixel data compress a thousandfold."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def webp_bomb(side: int) -> bytes:
    """The VP8L header allows at most 16,383 pixels a side."""
    side = min(side, 16_383)
    bits = (side - 1) | (side - 1) << 14
    payload = b"\x2f" + struct.pack("<I", bits) + bytes(32)
    chunk = b"VP8L" + struct.pack("<I", len(payload)) + payload + bytes(1)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def patched(kind: str, at: int, layout: str, **options) -> bytes:
    """A small file whose header, at this offset, declares huge sides."""
    data = bytearray(saved(SMALL.convert("RGB"), kind, **options))
    struct.pack_into(layout, data, at, SIDE, SIDE)
    return bytes(data)


def jpeg_bomb() -> bytes:
    data = bytearray(saved(SMALL.convert("RGB"), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, start, SIDE, SIDE)
    return bytes(data)


def tiff_bomb() -> bytes:
    """An image file directory that declares a width and a height."""
    entries = [(256, 4, SIDE), (257, 4, SIDE), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, SIDE), (279, 4, 8)]
    packed = b"".join(struct.pack("<HHII", tag, t, 1, v) for tag, t, v in entries)
    directory = struct.pack("<H", len(entries)) + packed + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory


BOMBS = {
    "PNG": png_bomb(SIDE),
    "PNG 900 megapixels": png_bomb(30_000),
    "WEBP": webp_bomb(SIDE),
    "JPEG": jpeg_bomb(),
    "GIF": b"GIF89a" + struct.pack("<HH", SIDE, SIDE) + bytes(3),
    "BMP": patched("BMP", 18, "<ii"),
    "DIB": patched("DIB", 4, "<ii"),
    "DDS": patched("DDS", 12, "<II"),
    "PPM": b"P6 50000 50000 255\n" + bytes(99),
    "TGA": patched("TGA", 12, "<HH"),
    "PCX": patched("PCX", 8, "<HH"),
    "SGI": patched("SGI", 6, ">HH"),
    "QOI": patched("QOI", 4, ">II"),
    "JPEG2000": patched("JPEG2000", 48, ">II"),
    "TIFF": tiff_bomb(),
    "XBM": b"#define x_width 50000\n#define x_height 50000\nstatic char x_bits[] = {",
}
BAD_FILES |= {
    f"bomb {name}": (
        data,
        "image/png",
        OTHERS.get(name, "limit of 178956970 pixels"),
    )
    for name, data in BOMBS.items()
}
BAD_FILES["bomb GIF"] = (BOMBS["GIF"], "image/gif", "cannot be opened as gif")
BAD_FILES["no image: a strip"] = (
    saved(Image.new("L", (2_000_000, 1)), "PNG"),
    "image/png",
    "2000000x1 pixels; a side may have at most 131072",
)

# Files that are not images

NO_IMAGES = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"a price tag",
    "HTML": b"<!doctype html><title>404</title>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
    "PDF": saved(SMALL.convert("RGB"), "PDF"),
    "EPS": saved(SMALL.convert("RGB"), "EPS"),
    "PALM": saved(SMALL.convert("1"), "PALM"),
    "ZIP": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "ELF": b"\x7fELF" + bytes(60),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "random": np.random.default_rng(0).bytes(5000),
    "megabytes of nothing": bytes(5_000_000),
}
BAD_FILES |= {
    f"no image: {name}": (data, "image/png", OTHER_KIND)
    for name, data in NO_IMAGES.items()
}

# Files of many parts, each of which is legal: name, parts, pixels, cause

MANY_PARTS = {
    "jpeg_scans": (600, 10**6, "more than 100 scans"),
    "jpeg_exif_segments": (20, 900, "more than 16 segments of exif data"),
    "jpeg_comments": (5000, 900, "segments"),
    "jpeg_fill_bytes": (9000, 900, "bytes between its segments"),
    "jpeg_junk": (9000, 900, "bytes between its segments"),
    "jpeg_photoshop": (100_000, 900, "resources in its photoshop data"),
    "jpeg_tables": (5000, 900, "bytes of quantisation tables"),
    "jpeg_frames": (40_000, 900, "more than 1 frame"),
    "jpeg_after_end": (9000, 900, "the marker ffd9 before its first scan"),
    "jpeg_behind_markers": (9000, 900, "the marker fff0 before its first scan"),
    "jpeg_hidden_scans": (600, 10**6, "more than 100 scans"),
    "jpeg_exif_entries": (5000, 900, "a directory of it has 5001 entries"),
    "jpeg_several_images": (9, 900, "segments of several images"),
    "jpeg_exif_rationals": (5000, 900, "5000 rational numbers"),
    "png_chunks": (5000, 900, "chunks"),
    "png_chunks_after": (5000, 900, "chunks"),
    "png_empty_data": (5000, 900, "chunks"),
    "png_exif_entries": (60_000, 900, "a directory of it has 60001 entries"),
    "png_exif_chunks": (9, 900, "more than 4 chunks of exif data"),
    "png_exif_text": (60_000, 900, "a directory of it has 60001 entries"),
    "png_text_exif": (60_000, 900, "a directory of it has 60001 entries"),
    "png_texts_exif": (9, 900, "more than 4 chunks of exif data"),
    "png_exif_rationals": (60_000, 900, "60000 rational numbers"),
    "png_damaged_texts": (200, 900, "more than 64 compressed chunks"),
    "png_profiles": (200, 900, "more than 64 compressed chunks"),
    "gif_comments": (5000, 900, "blocks before its first image"),
    "gif_long_comment": (2_000_000, 900, "blocks before its first image"),
    "gif_unknown_bytes": (5000, 900, "blocks before its first image"),
    "tiff_strips": (80_000, 900, "it has 10000 strips or tiles for 30"),
    "tiff_repeated_strips": (80_000, 900, "it has 10000 strips or tiles for 2"),
    "tiff_large_tile": (1, 40_000_000, "its tiles are 6320x6320 pixels"),
    "tiff_entries": (60_000, 900, "a directory of it has 60002 entries"),
    "tiff_jpeg_scans": (9, 10**6, "more than four scans"),
    "tiff_shared_scans": (1, 10**6, "31050 bytes together"),
    "tiff_shared_headers": (9000, 10**6, "bytes together"),
    "tiff_reversed_strips": (1, 900, "900000000 bytes together"),
    "tiff_without_sizes": (1, 900, "bytes together"),
    "tiff_small_tiles": (1, 10**6, "it has 260100 strips or tiles"),
    "tiff_narrow_strips": (1, 100_000, "it has 100000 strips or tiles"),
    "tiff_tile_of_strips": (1, 40_000_000, "it has both strips and tiles"),
    "tiff_directories": (30, 900, "in its directories"),
    "webp_chunks": (5000, 900, "chunks"),
    "webp_exif_chunks": (9, 900, "more than 4 chunks of exif data"),
    "webp_exif_entries": (60_000, 900, "a directory of it has 60001 entries"),
    "bmp_runs": (1, 900, "run-length encoded"),
    **dict.fromkeys(("fits", "qoi", "psd", "icns"), (900, 900, OTHER_KIND)),
}
BAD_FILES |= {
    f"many parts: {name}": (KINDS[name](parts, pixels), "image/png", cause)
    for name, (parts, pixels, cause) in MANY_PARTS.items()
}


def with_broken_exif(tag: int) -> bytes:
    """Cameras write sizes that lead out of the data."""
    tags = struct.pack("<HHHII", 1, tag, 7, 10**9, 99) + bytes(4)
    segment = b"Exif\0\0II*\0" + struct.pack("<I", 8) + tags
    return saved(SMALL, "JPEG", exif=segment)
