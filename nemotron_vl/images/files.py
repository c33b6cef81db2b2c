# SPDX-License-Identifier: Apache-2.0
"""Pictures in the files of a user."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..regular_files import open_regular

# Formats that scanners and cameras write; MPO is a kind of JPEG. Pillow knows others:
# for EPS it starts Ghostscript.
FORMATS = (*("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"),)


@contextlib.contextmanager
def open_picture(file: Path) -> Iterator[Image.Image]:
    """Open a picture whose pixels are read when they are used, in the block.

    Raises:
        OSError: It cannot be read or is of no known format.
        ValueError: It is not a regular file.
    """
    with open_regular(file) as opened:
        try:
            picture = Image.open(opened, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise OSError("It is not a picture of a known format.") from error
        with picture:
            yield picture
