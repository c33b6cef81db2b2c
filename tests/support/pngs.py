"""PNG files, written chunk by chunk, and what Pillow makes of them."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    memory,
    png,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {"RGB": 2, "RGBA": 6}


def chunk(name: bytes, data: bytes = b"") -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def file_of(
    size: tuple[int, int],
    mode: str,
    compressed: bytes | Iterable[bytes],
    before: bytes = b"",
    after: bytes = b"",
    bits: int = 8,
    interlaced: int = 0,
) -> bytes:
    """A file whose IDAT chunks have the compressed bytes, each a part of them."""
    header = struct.pack(">IIBBBBB", *size, bits, COLOURS[mode], 0, 0, interlaced)
    parts = [compressed] if isinstance(compressed, bytes) else compressed
    data = b"".join(chunk(b"IDAT", part) for part in parts)
    return SIGNATURE + chunk(b"IHDR", header) + before + data + after + chunk(b"IEND")


def rows_of(
    size: tuple[int, int], mode: str, filters: Iterable[int], seed: int = 0
) -> bytes:
    """Filtered rows of random bytes, one for each of the filters."""
    width, height = size
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (height, 1 + len(mode) * width), np.uint8)
    rows[:, 0] = [*filters]
    return rows.tobytes()


# A small file: its size, rows, compressed rows, and a chunk of text
SIZE = (5, 4)
ROWS = {mode: rows_of(SIZE, mode, (4, 3, 2, 1)) for mode in ("RGB", "RGBA")}
Z = zlib.compress(ROWS["RGB"])
TEXT = chunk(b"tEXt", b"Title\0A page")


def facts(image: Image.Image) -> dict:
    """All that there is of a decoded image."""
    pixels = memory.own_memory(image) if image.mode in ("RGB", "RGBA") else None
    return {
        "pixels": image.tobytes(),
        "padding": None if pixels is None else pixels[..., 3].tobytes(),
        **{
            name: getattr(image, name)
            for name in ("mode", "size", "format", "info", "fp", "readonly")
        },
        **{name: getattr(image, name, None) for name in ("text", "private_chunks")},
        "tile": image.tile,
        "exif": dict(image.getexif()),
    }


def decoded(data: bytes, load) -> tuple[bool, dict | tuple[type, str]]:
    """What `load` returned, and the image or the error."""
    used = False
    try:
        with Image.open(io.BytesIO(data)) as image:
            used = load(image, data)
            image.load()
            return used, facts(image)
    except Exception as error:
        if isinstance(error, Image.UnidentifiedImageError):
            return used, (type(error), "its text has an address")
        return used, (type(error), str(error))


def check(data: bytes) -> bool:
    """Compare with Pillow; whether Pillow was not needed."""
    used, ours = decoded(data, png.load)
    assert ours == decoded(data, lambda *_: False)[1]
    return used
