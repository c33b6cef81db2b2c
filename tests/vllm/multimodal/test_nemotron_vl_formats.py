"""The limits of each format hold exactly: as many parts as allowed, and one more."""

import struct

import pytest

from vllm_nemotron_vl.multimodal.nemotron_vl_formats import Refused, check_structure


def gif(parts: int, palette: int = 0) -> bytes:
    """Comments before the first image, behind a palette of bytes that end a GIF.

    Args:
        parts: Number of comments.
        palette: Colours of the palette, a power of two, or none.
    """
    flags = 128 | palette.bit_length() - 2 if palette else 0
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, flags, 0, 0)
    return head + b";" * (3 * palette) + b"!\xfe\0" * parts + b";"


def jpeg(*segments: tuple[int, bytes], filling: int = 0) -> bytes:
    """Segments by marker, and bytes of no segment before the first scan."""
    packed = [
        struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content
        for marker, content in segments
    ]
    return b"\xff\xd8\xff\xe0\0\2" + b"".join(packed) + bytes(filling) + b"\xff\xda\0\2"


def webp(chunks: int, name: bytes = b"junk") -> bytes:
    """Chunks of one byte, which is filled up to two."""
    return b"RIFF\0\0\0\0WEBP" + (name + struct.pack("<I", 1) + b"\0\0") * chunks


def tables(size: int) -> bytes:
    """A segment has at most 65,533 bytes."""
    return jpeg((0xDB, bytes(60_000)), (0xDB, bytes(size - 60_000)))


@pytest.mark.parametrize(
    ("make", "most", "what"),
    [
        (gif, 4096, "blocks before its first image"),
        *((lambda n, p=2**k: gif(n, p), 4096, "blocks") for k in range(1, 9)),
        (lambda n: jpeg(filling=n), 4096, "bytes between its segments"),
        (lambda n: jpeg((0xED, b"8BIM" * n)), 4096, "resources in its Photoshop data"),
        (webp, 4096 + 40, "chunks"),  # one more for each 1024 bytes
        (lambda n: webp(n, b"EXIF"), 4, "chunks of Exif data"),
        (tables, 1 << 16, "bytes of quantisation tables"),
        (lambda n: jpeg(*[(0xE2, b"MPF\0")] * n), 4, "segments of several images"),
        (lambda n: jpeg(*[(0xE1, b"Exif\0\0")] * n), 16, "segments of Exif data"),
    ],
)
def test_as_many_parts_as_allowed_are_read(make, most, what):
    check_structure(make(most))
    with pytest.raises(Refused, match=f"more than {most} {what}"):
        check_structure(make(most + 1))


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_a_jpeg_has_one_frame(marker):
    frame = (marker, struct.pack(">BHHB", 8, 10, 10, 0))
    check_structure(jpeg(frame))
    with pytest.raises(Refused, match="more than 1 frame"):
        check_structure(jpeg(frame, frame))


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC9, 0xCA, 0xDE])
def test_frames_of_other_kinds(marker):
    with pytest.raises(Refused, match="lossless, hierarchical or arithmetic-coded"):
        check_structure(jpeg((marker, bytes(6))))


@pytest.mark.parametrize("marker", [0xC8, 0xD8, 0xD9, 0xF0, 0xFD])
def test_markers_that_no_header_has(marker):
    with pytest.raises(Refused, match=f"it has the marker FF{marker:02X} before its"):
        check_structure(jpeg((marker, b"")))
    check_structure(jpeg() + jpeg((marker, b""))[6:])  # behind the first scan
