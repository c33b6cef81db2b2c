"""Documents of drawn pages: PDFs, TIFFs and those that cannot be read."""

import io
import zlib
from collections.abc import Iterable

from PIL import Image


def pdf(pages: Iterable[Image.Image]) -> bytes:
    """A PDF with an image on each page, a point for each pixel."""
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


def pdf_stream(number: int, data: bytes, entries: str = "") -> bytes:
    """An object of a PDF with compressed data."""
    packed = zlib.compress(data, 9)
    head = f"{number} 0 obj <</Length {len(packed)} /Filter /FlateDecode {entries}>>"
    return head.encode() + b" stream\n" + packed + b"\nendstream endobj\n"


def drawn_pdf(
    content: bytes, *, resources: str = "", more: bytes = b"", pages: int = 1
) -> bytes:
    """A PDF whose pages are one and the same.

    Args:
        content: Drawing commands.
        resources: What they use, such as ``/XObject <</A 10 0 R>>``.
        more: Objects from number 10.
        pages: How often the page is listed.
    """
    kids = "3 0 R " * pages
    return (
        b"%PDF-1.7\n1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
        + f"2 0 obj <</Type /Pages /Kids [{kids}] /Count {pages}>> endobj\n"
        "3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        f"/Resources <<{resources}>>>> endobj\n".encode()
        + pdf_stream(4, content)
        + more
        + b"trailer <</Root 1 0 R /Size 99>>\n%%EOF\n"
    )


def slow_pdf(pages: int = 1) -> bytes:
    """A PDF of 200 kB whose pages take minutes each."""
    return drawn_pdf(b"0 0 600 700 re f\n" * 5_000_000, pages=pages)


def encrypted_pdf() -> bytes:
    """A PDF that only opens with a password, which nobody knows."""
    secret = "<" + "5a" * 32 + ">"
    entries = f"/Filter /Standard /V 1 /R 2 /P -4 /O {secret} /U {secret}"
    security = f"4 0 obj <<{entries}>> endobj\n"
    identity = "/Encrypt 4 0 R /ID [<00><00>]"
    return blank_pdf(612, 792, extra=security, trailer=identity)


def solid(colour: str, size: tuple[int, int] = (60, 80)) -> Image.Image:
    return Image.new("RGB", size, colour)
