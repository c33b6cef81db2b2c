# SPDX-License-Identifier: Apache-2.0
"""Pages of PDFs: drawn by PDFium, and the text that the file has for them.

PDFium is not thread-safe.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..checkpoints.tiler import Tiler
from ..regular_files import open_regular

_HEADER_WITHIN = 1024  # bytes; PDFium's limit
_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD of PDFium
_MOST_TEXT = 1 << 20  # characters of a page, and bytes in UTF-8
_MOST_ANGLES = 1000  # characters of a page whose direction is looked at


def is_pdf(file: Path) -> bool:
    with open_regular(file) as opened:
        return b"%PDF-" in opened.read(_HEADER_WITHIN)


@contextmanager
def open_pdf(file: Path, passwords: Sequence[str]) -> Iterator[Any]:
    """A document of pypdfium2, which reads the file as it needs it.

    Args:
        file: A PDF.
        passwords: Tried in turn if it is encrypted.

    Raises:
        ValueError: It is encrypted, damaged or without pages.
    """
    document = _open(file, passwords)
    try:
        document.init_forms()  # before its pages: draws what is filled in
        if not len(document):
            raise ValueError("The PDF has no pages.")
        yield document
    finally:
        document.close()


def _open(file: Path, passwords: Sequence[str]):
    try:
        import pypdfium2
    except ImportError as error:
        raise ValueError(
            "PDFs need another package: pip install pypdfium2 (the extra "
            '"documents" of this package)'
        ) from error
    for password in (None, *passwords):
        try:
            return pypdfium2.PdfDocument(file, password)
        except pypdfium2.PdfiumError as error:
            if error.err_code != _PASSWORD_ERROR:
                raise ValueError(f"The PDF cannot be opened: {error}") from error
    if passwords:
        raise ValueError("The PDF is encrypted, and no given password opens it.")
    raise ValueError("The PDF is encrypted and needs a password.")


def drawn_size(
    document: Any, index: int, tiler: Tiler, turn: int
) -> tuple[float, tuple[int, int]]:
    """Pixels per point of a page that fills its tiles, and its width and height.

    Args:
        document: Of `open_pdf`.
        index: Of the page, from 0.
        tiler: How the server cuts images.
        turn: Degrees clockwise by which the page is turned.

    Raises:
        ValueError: The page has no area.
    """
    width, height = document.get_page_size(index)
    if min(width, height) <= 0:
        raise ValueError(f"The page is {width:g}x{height:g} points.")
    if turn % 180:
        width, height = height, width
    scale = tiler.filling_scale(width, height)
    return scale, (math.ceil(width * scale), math.ceil(height * scale))


def draw(page: Any, scale: float, turn: int) -> Image.Image:
    """A page with its form fields and annotations."""
    with closing(page.render(scale=scale, rotation=turn)) as bitmap:
        return bitmap.to_pil()  # a copy: the bitmap has the order BGR


def text_layer(page: Any) -> tuple[str | None, int]:
    """The text that the file has for a page, and how the page should be turned.

    Returns:
        The text, up to 1 MiB in UTF-8, or ``None`` if there is none. Degrees clockwise
        by which the page should be turned so that most characters are upright: 0, 90,
        180 or 270.
    """
    with closing(page.get_textpage()) as layer:
        angle = -(_direction(layer) + page.get_rotation()) % 360
        text = _text(layer)
    if angle and text:  # the order of the lines is that of the page as it is displayed
        displayed = page.get_rotation()
        page.set_rotation((displayed + angle) % 360)
        with closing(page.get_textpage()) as layer:
            text = _text(layer)
        page.set_rotation(displayed)
    return (text, angle) if text else (None, 0)


def _text(layer: Any) -> str:
    """All text, or nothing if it is only space."""
    if not (count := min(layer.count_chars(), _MOST_TEXT)):
        return ""
    text = layer.get_text_range(0, count).replace("\r\n", "\n")
    text = text.encode()[:_MOST_TEXT].decode(errors="ignore")
    return text if text.strip() else ""


def _direction(layer: Any) -> int:
    """Degrees clockwise by which most characters are turned on the page."""
    from pypdfium2.raw import FPDFText_GetCharAngle, FPDFText_IsGenerated

    count = layer.count_chars()
    directions: Counter[int] = Counter()
    for index in range(0, count, 1 + count // _MOST_ANGLES):
        angle = FPDFText_GetCharAngle(layer, index)  # -1: it has none
        if angle >= 0 and not FPDFText_IsGenerated(layer, index):
            directions[round(angle / (math.pi / 2)) % 4 * 90] += 1
    return max(directions, key=directions.__getitem__, default=0)
