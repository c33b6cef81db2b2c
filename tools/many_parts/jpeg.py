"""JPEG files of many parts."""

import struct

from .files import blank, directory, jpeg_with, rationals, segment


def _jpeg_scans(scan: bytes, parts: int, pixels: int, mode: str) -> bytes:
    whole = blank(pixels, "JPEG", mode, progressive=True, subsampling=0)
    return whole[:-2] + segment(0xDA, scan) * parts + whole[-2:]


def jpeg_scans(parts: int, pixels: int, mode: str = "RGB") -> bytes:
    """A progressive JPEG with empty scans for the first coefficients."""
    return _jpeg_scans(b"\x01\x01\x00\x01\x05\x00", parts, pixels, mode)


def jpeg_refinements(parts: int, pixels: int) -> bytes:
    """A progressive JPEG with empty scans for a bit of all its blocks."""
    scan = b"\x03\x01\x00\x02\x00\x03\x00\x00\x00\x10"
    return _jpeg_scans(scan, parts, pixels, "RGB")


def jpeg_exif_segments(parts: int, pixels: int) -> bytes:
    return jpeg_with(segment(0xE1, b"Exif\0\0II"), parts, pixels)


def jpeg_comments(parts: int, pixels: int) -> bytes:
    return jpeg_with(segment(0xFE, b""), parts, pixels)


def jpeg_fill_bytes(parts: int, pixels: int) -> bytes:
    return jpeg_with(b"\xff", parts, pixels)


def jpeg_junk(parts: int, pixels: int) -> bytes:
    return jpeg_with(segment(0xFE, b"") + b"\0" * 9, parts // 10, pixels)


def jpeg_photoshop(parts: int, pixels: int) -> bytes:
    block = b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5400
    return jpeg_with(segment(0xED, block), max(1, parts // 5400), pixels)


def jpeg_tables(parts: int, pixels: int) -> bytes:
    return jpeg_with(segment(0xDB, b"\0" + b"\1" * 64), parts, pixels)


def jpeg_exif_entries(parts: int, pixels: int) -> bytes:
    exif = directory([(274, 3, 1, 6)], min(parts, 5000), 60_000)
    return jpeg_with(segment(0xE1, b"Exif\0\0" + exif[:65000]), 1, pixels)


def jpeg_several_images(parts: int, pixels: int) -> bytes:
    exif = directory([(274, 3, 1, 6)] * 1000)
    return jpeg_with(segment(0xE2, b"MPF\0" + exif), min(parts, 1000), pixels)


def jpeg_after_end(parts: int, pixels: int) -> bytes:
    """Exif data after an end marker, where Pillow goes on."""
    segments = segment(0xE1, b"Exif\0\0" + bytes(994)) * max(1, parts // 1000)
    return jpeg_with(b"\xff\xd9" + segments, 1, pixels)


def jpeg_behind_markers(parts: int, pixels: int) -> bytes:
    """Exif data where a marker without a length seems to have one."""
    segments = segment(0xE1, b"Exif\0\0") * 6553
    return jpeg_with(b"\xff\xf0\xff\xff" + segments, max(1, parts // 6553), pixels)


def jpeg_frames(parts: int, pixels: int) -> bytes:
    frame = struct.pack(">BHHB", 8, 9, 9, 3) + bytes(60_000)
    return jpeg_with(segment(0xC0, frame), max(1, parts // 20_000), pixels)


def jpeg_hidden_scans(parts: int, pixels: int) -> bytes:
    """Scans behind a marker in coded pixels that libjpeg passes over."""
    whole = blank(pixels, "JPEG", "L", progressive=True)
    scans = segment(0xDA, b"\x01\x01\x00\x01\x05\x00") * min(parts, 6000)
    first = segment(0xDD, b"\0\1") + segment(0xDA, b"\x01\x01\x00\x01\x05\x00")
    hidden = first + b"\0\xff\x02\xff\xff" + scans
    return whole[:-2] + hidden.ljust(65_600, b"\0") + whole[-2:]


def jpeg_exif_rationals(parts: int, pixels: int) -> bytes:
    exif = rationals(parts)
    pieces = (exif[place : place + 65_000] for place in range(0, len(exif), 65_000))
    segments = b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces)
    return jpeg_with(segments, 1, pixels)
