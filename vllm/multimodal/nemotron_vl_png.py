# SPDX-License-Identifier: Apache-2.0
"""Decoding of PNG files by libvips, which takes 0.6 of Pillow's time.

``docs/preprocessing.md`` compares it with other libraries.
"""

import logging
import os
from functools import cache
from typing import Any

from PIL import Image

from .nemotron_vl_formats import png_chunks
from .nemotron_vl_lazy import ArrayImage

# In the header behind the size: 8 bits, RGB or RGBA, not interlaced
_KINDS = (b"\x08\x02\0\0\0", b"\x08\x06\0\0\0")
_PIXELS = {b"IDAT", b"IEND"}
_ORIENTATION = 0x0112
_OPAQUE = 0xFF000000  # the least pixel, as a little-endian number


def decode_png(data: bytes, opened: Image.Image) -> Image.Image | None:
    """Decode a PNG file of 8-bit RGB or RGBA pixels.

    Args:
        data: A file whose structure and size were checked.
        opened: What Pillow made of the file before it was decoded.

    Returns:
        RGB or RGBA; `None` if Pillow has to decide about the file: it is of another
        kind, is turned or damaged, or libvips (``pyvips``) is not installed.
    """
    if opened.format != "PNG" or not _is_plain(data, opened):
        return None
    if (vips := _vips()) is None:
        return None
    try:
        # Pillow also reads some files that libvips warns of; never the reverse.
        image = vips.Image.pngload_buffer(data, access="sequential", fail_on="warning")
        pixels = image.numpy()
    except vips.Error:
        return None
    if image.bands == 3 or pixels.view("<u4").min() >= _OPAQUE:
        return ArrayImage(pixels)
    return Image.fromarray(pixels)


def _is_plain(data: bytes, opened: Image.Image) -> bool:
    names = [name for name, _, _ in png_chunks(data)]
    # Pillow has read what stands before the pixels, and so may tell how they are shown.
    behind = names[names.index(b"IDAT") :] if b"IDAT" in names else names
    return (
        names[0] == b"IHDR"
        and data[24:29] in _KINDS
        and _PIXELS.issuperset(behind)
        and not getattr(opened, "is_animated", False)
        and "transparency" not in opened.info
        and _is_upright(opened)
    )


def _is_upright(opened: Image.Image) -> bool:
    same = Image.Image()  # the opened file would decode its pixels first
    same.info = opened.info
    try:
        return same.getexif().get(_ORIENTATION, 1) == 1
    except Exception:  # Pillow raises all kinds for damaged Exif data
        return False


@cache
def _vips() -> Any:
    # One thread for an image: the file is decoded in its order.
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    try:
        import cv2  # noqa: F401  converts these arrays for the resampling
        import pyvips
    except (ImportError, OSError):  # or its library is missing
        return None
    # It says what is wrong with each damaged file; the client is told by us.
    logging.getLogger("pyvips").addHandler(logging.NullHandler())
    return pyvips
