# SPDX-License-Identifier: Apache-2.0
"""Images in the files of a user."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from ..regular_files import open_regular
from .kinds import HEAD, complaint, is_heic

# Formats that scanners and cameras write; MPO is a kind of JPEG. Pillow knows others:
# for EPS it starts Ghostscript.
FORMATS = (*("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"),)


@contextlib.contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Open an image whose pixels are read when they are used, in the block.

    Raises:
        OSError: It cannot be read or is of no known format; says what it is.
        ValueError: It is not a regular file.
    """
    with open_regular(file) as opened:
        heic = is_heic(opened.read(HEAD))
        opened.seek(0)
        if heic:
            _register_heif()
        try:
            image = Image.open(opened, formats=("HEIF",) if heic else FORMATS)
        except UnidentifiedImageError as error:
            raise OSError(complaint(opened)) from error
        with image:
            yield image


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise OSError(
            "It is a HEIC image, which needs another package: pip install "
            'pillow-heif (the extra "heic" of this package)'
        ) from error
    pillow_heif.register_heif_opener()


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF rotation."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow has swapped them
        return width, height
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB as the server sees it: 16 bits scaled, transparent is white."""
    if image.mode[0] == "I":
        image = image.convert("I").point(lambda level: level / 257).convert("L")
    elif image.mode == "F":  # levels from 0 to 1
        image = image.point(lambda level: level * 255 + 0.5).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")
