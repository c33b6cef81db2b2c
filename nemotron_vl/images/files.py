# SPDX-License-Identifier: Apache-2.0
"""Images in the files of a user."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..regular_files import open_regular

# Formats that scanners and cameras write; MPO is a kind of JPEG. Pillow knows others:
# for EPS it starts Ghostscript.
FORMATS = (*("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"),)


@contextlib.contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """Open an image whose pixels are read when they are used, in the block.

    Raises:
        OSError: It cannot be read or is of no known format.
        ValueError: It is not a regular file.
    """
    with open_regular(file) as opened:
        try:
            image = Image.open(opened, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise OSError("It is not an image of a known format.") from error
        with image:
            yield image
