"""Documents of drawn pages: PDFs, TIFFs and those that cannot be read."""

import hashlib
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


HELVETICA = "/Font <</F <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>>>"


def text_pdf(*lines: str, matrix: str = "1 0 0 1", rotate: int = 0) -> bytes:
    """A PDF of one page with lines of text.

    Args:
        lines: From the middle of the page.
        matrix: Of the text: direction of the line, and upwards.
        rotate: Degrees clockwise by which the page is displayed.
    """
    shown = " T* ".join(f"({line}) Tj" for line in lines)
    content = f"BT /F 20 Tf 24 TL {matrix} 300 400 Tm {shown} ET"
    page = drawn_pdf(content.encode(), resources=HELVETICA)
    return page.replace(b"/Type /Page ", b"/Type /Page /Rotate %d " % rotate)


def locked_pdf(password: str, text: str) -> bytes:
    """An encrypted PDF of one page of text (RC4 of 40 bits, PDF 1.7, 7.6)."""
    padding = bytes.fromhex(
        "28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a"
    )
    padded = (password.encode() + padding)[:32]
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    rights = (-4).to_bytes(4, "little", signed=True)
    key = hashlib.md5(padded + owner + rights + b"\0").digest()[:5]
    user = _rc4(key, padding)
    of_object = hashlib.md5(key + b"\4\0\0\0\0").digest()[:10]
    content = _rc4(of_object, f"BT /F 20 Tf 300 400 Td ({text}) Tj ET".encode())
    entries = f"/V 1 /R 2 /P -4 /O <{owner.hex()}> /U <{user.hex()}>"
    return (
        b"%PDF-1.4\n1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
        b"2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj\n"
        b"3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        + f"/Resources <<{HELVETICA}>>>> endobj\n".encode()
        + b"4 0 obj <</Length %d>> stream\n" % len(content)
        + content
        + b"\nendstream endobj\n"
        + f"5 0 obj <</Filter /Standard {entries}>> endobj\n".encode()
        + b"trailer <</Root 1 0 R /Size 6 /Encrypt 5 0 R /ID [<00><00>]>>\n%%EOF\n"
    )


def _rc4(key: bytes, data: bytes) -> bytes:
    state, j = [*range(256)], 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
