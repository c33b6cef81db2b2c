"""Documents that are made to cost much cost little, or are given up."""

import io
import os
import zlib
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents import pages
from nemotron_vl.documents import process as page_process
from nemotron_vl.documents.pages import Document, Drawing
from nemotron_vl.documents.process import PageProcess
from support.documents import blank_pdf, drawn_pdf, pdf_stream, slow_pdf, solid
from support.hostile import bounded_memory

TILER = Tiler.from_model(None)
FORM = "/Type /XObject /Subtype /Form /BBox [0 0 600 700]"


def document(file: Path) -> Document:
    return Document(str(file), file)


def nothing(file: str, page: int | None) -> bool:
    return False


@pytest.fixture
def process():
    with PageProcess(Drawing(TILER), most_pages=20) as process:
        yield process


def claims(count: int) -> bytes:
    """A PDF of one page that claims to have more."""
    return blank_pdf(60, 80).replace(b"/Count 1", b"/Count %d" % count)


def nested(depth: int) -> bytes:
    """Forms that draw forms, ten each."""
    uses = "/Resources <</XObject <</F {} 0 R>>>>"
    return drawn_pdf(
        b"/F Do",
        resources="/XObject <</F 10 0 R>>",
        more=b"".join(
            pdf_stream(10 + n, b"/F Do " * 10, f"{FORM} {uses.format(11 + n)}")
            for n in range(depth)
        ),
    )


def image(width: int, height: int, entries: str, data: bytes) -> bytes:
    """A page with an image whose header promises many pixels."""
    head = f"10 0 obj <</Type /XObject /Subtype /Image /Width {width} /Height {height}"
    head += f" /ColorSpace /DeviceGray {entries} /Length {len(data)}>> stream\n"
    stream = head.encode() + data + b"\nendstream endobj\n"
    content = b"600 0 0 700 0 0 cm /I Do"
    return drawn_pdf(content, resources="/XObject <</I 10 0 R>>", more=stream)


def bomb() -> bytes:
    """A page whose commands take 1 GB, packed twice."""
    packer, zeros = zlib.compressobj(9), bytes(1 << 24)
    packed = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    page = drawn_pdf(packed)
    return page.replace(b"/Filter /FlateDecode", b"/Filter [/FlateDecode /FlateDecode]")


CALCULATOR = pdf_stream(
    10,
    b"{" + b" dup mul 2 exch sub abs sqrt" * 100_000 + b" pop}",
    "/FunctionType 4 /Domain [0 1 0 1] /Range [0 1]",
)
SHADING = (
    "/Shading <</S <</ShadingType 1 /ColorSpace /DeviceGray /Domain [0 1 0 1] "
    "/Matrix [600 0 0 700 0 0] /Function 10 0 R>>>>"
)
# What makes a file, and the numbers of its pages: None for the whole document. A page
# may be blank.
DOCUMENTS = {
    "a million pages": (partial(claims, 1_000_000), [*range(1, 21), None]),
    "a billion pages": (partial(claims, 1_000_000_000), [1]),
    "fewer than no pages": (partial(claims, -1), [1]),
    "one page many times": (
        partial(drawn_pdf, b"", pages=100_000),
        [*range(1, 21), None],
    ),
    "slow pages": (partial(slow_pdf, pages=1000), [1, 2, 3, None]),
    "forms in forms": (partial(nested, 9), [1]),
    "a form in itself": (
        partial(
            drawn_pdf,
            b"/F Do",
            resources="/XObject <</F 10 0 R>>",
            more=pdf_stream(
                10, b"/F Do /F Do", f"{FORM} /Resources <</XObject <</F 10 0 R>>>>"
            ),
        ),
        [1],
    ),
    "a calculation": (
        partial(drawn_pdf, b"/S sh", resources=SHADING, more=CALCULATOR),
        [1],
    ),
    "a packed gigabyte": (bomb, [1]),
    "nested arrays": (partial(drawn_pdf, b"[" * 500_000), [1]),
    "many pixels": (
        partial(image, 60_000, 60_000, "/BitsPerComponent 8", b"0" * 99),
        [1],
    ),
    "many pixels of a fax": (
        partial(
            image,
            *(65_000, 65_000),
            "/BitsPerComponent 1 /Filter /CCITTFaxDecode /DecodeParms "
            "<</K -1 /Columns 65000 /Rows 65000>>",
            b"\xff" * 60,
        ),
        [1],
    ),
    "an image elsewhere": (
        partial(image, 60, 60, "/BitsPerComponent 8 /F (/etc/passwd)", b""),
        [1],
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_pdf_is_bounded(process, tmp_path, monkeypatch, name):
    monkeypatch.setattr(page_process, "MOST_SECONDS", 5.0)
    make, numbers = DOCUMENTS[name]
    data = make()
    assert len(data) < 1_000_000
    file, after = tmp_path / "hostile.pdf", tmp_path / "after.pdf"
    file.write_bytes(data)
    after.write_bytes(blank_pdf(60, 80))
    with bounded_memory(100):
        assert process.count(file) <= 20
        *found, last = process.read([*map(document, (file, after))], nothing)
    assert [page.number for page in found] == numbers
    assert all(page.error or page.image for page in found)
    assert last.file == str(after) and last.error is None


def test_other_formats_of_pillow_are_not_opened(process, tmp_path):
    """Pillow draws EPS with Ghostscript."""
    for kind in ("EPS", "TGA", "PCX", "SGI"):
        file = tmp_path / f"{kind}.png"
        solid("red").save(file, kind)
        (page,) = process.read([document(file)], nothing)
        assert page.error.startswith("It is ") and not page.image


@pytest.mark.parametrize("name", ["a pipe", "a device", "a folder"])
def test_only_regular_files_are_read(process, tmp_path, name):
    file = tmp_path / "page.png"
    if name == "a pipe":
        os.mkfifo(file)
    elif name == "a device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    assert process.count(file) == 1
    (page,) = process.read([document(file)], nothing)
    assert page.error == f"{file} is not a regular file."


def test_a_large_file_is_drawn_anew(process, tmp_path):
    """The request, and this process, would hold all of it several times."""
    file = tmp_path / "page.png"
    solid("red").save(file)
    with file.open("ab") as opened:
        opened.truncate(1 << 30)
    with bounded_memory(100):
        (page,) = process.read([document(file)], nothing)
    assert page.error is None and len(page.image) < 10_000
    with Image.open(io.BytesIO(page.image)) as opened:
        assert opened.size == (60, 80)
    assert pages._MOST_SENT < 1 << 30
