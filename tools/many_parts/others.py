"""Files of many parts in formats of which there are few kinds."""

import gzip
import io
import struct

from PIL import Image

from .files import blank, directory, side_of


def _gif_with(part: bytes, parts: int, pixels: int) -> bytes:
    whole = blank(min(pixels, 65535**2), "GIF")
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


def _webp_with(part: bytes, parts: int, pixels: int) -> bytes:
    side = min(side_of(pixels), 16383)
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
    exif = directory([(274, 3, 1, 6)], min(parts, 65_000), 2_000_000)
    return _webp_with(b"EXIF" + struct.pack("<I", len(exif)) + exif, 1, pixels)


def webp_exif_chunks(parts: int, pixels: int) -> bytes:
    exif = directory([(274, 3, 1, 6)] * 1000)
    chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif
    return _webp_with(chunk * min(parts, 1000), 1, pixels)


def webp_frames(parts: int, pixels: int) -> bytes:
    """Three frames, of which the first is read."""
    side = min(side_of(pixels), 16383)
    first, *others = (Image.new("L", (side, side), level) for level in (0, 1, 2))
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others)
    return file.getvalue()


def bmp_runs(parts: int, pixels: int) -> bytes:
    """Run-length encoded; each row ends after one pixel."""
    side = side_of(pixels)
    rows = b"\1\0\0\0" * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 0, 0, 0, 256, 0)
    offset = 14 + len(head) + 1024
    file = struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
    return file + head + bytes(range(256)) * 4 + rows


def fits(parts: int, pixels: int) -> bytes:
    """A compressed table, of which Pillow visits the pixels one by one."""
    side = side_of(pixels)
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
    side = side_of(min(pixels, parts))
    head = b"qoif" + struct.pack(">IIBB", side, side, 3, 0)
    return head + b"\xaa" * side * side + bytes(7) + b"\x01"


def psd(parts: int, pixels: int) -> bytes:
    side = side_of(pixels)
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 1, side, side, 8, 1)
    resources = (b"8BIM" + b"\x04\x00" + b"\0\0" + bytes(4)) * parts
    sizes = struct.pack(">II", 0, len(resources))
    return head + sizes + resources + bytes(4) + bytes(2) + bytes(min(pixels, 10**6))


def jpeg2000(parts: int, pixels: int) -> bytes:
    return blank(min(pixels, 4_000_000), "JPEG2000")


def avif(parts: int, pixels: int) -> bytes:
    return blank(min(pixels, 4_000_000), "AVIF", "RGB", speed=10)


def icns(parts: int, pixels: int) -> bytes:
    """Blocks that name nothing, and an icon."""
    icon = blank(1 << 20, "PNG", "RGB")
    blocks = (b"junk" + struct.pack(">I", 8)) * parts
    blocks += b"ic10" + struct.pack(">I", 8 + len(icon)) + icon
    return b"icns" + struct.pack(">I", 8 + len(blocks)) + blocks
