"""Documents of drawn pages: PDFs, TIFFs and those that cannot be read."""

import io
from collections.abc import Iterable

from PIL import Image


def pdf(pages: Iterable[Image.Image]) -> bytes:
    """A PDF with a picture on each page, a point for each pixel."""
    return _saved("PDF", pages)


def tiff(pages: Iterable[Image.Image]) -> bytes:
    return _saved("TIFF", pages)


def _saved(kind: str, pages: Iterable[Image.Image]) -> bytes:
    first, *others = pages
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=others)
    return file.getvalue()


def blank_pdf(
    width: float, height: float, *, extra: str = "", trailer: str = ""
) -> bytes:
    """A PDF of one blank page.

    Args:
        width: Points.
        height: Points.
        extra: More objects.
        trailer: More entries of the trailer.
    """
    return (
        "%PDF-1.4\n"
        "1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
        "2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj\n"
        f"3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}]>> "
        f"endobj\n{extra}trailer <</Root 1 0 R /Size 5 {trailer}>>\n%%EOF\n"
    ).encode()


def encrypted_pdf() -> bytes:
    """A PDF that only opens with a password, which nobody knows."""
    secret = "<" + "5a" * 32 + ">"
    entries = f"/Filter /Standard /V 1 /R 2 /P -4 /O {secret} /U {secret}"
    security = f"4 0 obj <<{entries}>> endobj\n"
    identity = "/Encrypt 4 0 R /ID [<00><00>]"
    return blank_pdf(612, 792, extra=security, trailer=identity)


def solid(colour: str, size: tuple[int, int] = (60, 80)) -> Image.Image:
    return Image.new("RGB", size, colour)
