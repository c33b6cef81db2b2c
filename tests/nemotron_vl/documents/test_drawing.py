"""What is told about a page besides its image: size, text, direction, marks."""

import io
import time

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents.pages import Document, Drawing, Page
from nemotron_vl.documents.process import PageProcess
from nemotron_vl.images.drawn import draw_text
from support.documents import (
    HELVETICA,
    blank_pdf,
    drawn_pdf,
    encrypted_pdf,
    locked_pdf,
    pdf,
    solid,
    text_pdf,
    tiff,
)

TILER = Tiler.from_model(None)
# Of a text, and by how many degrees clockwise it is displayed turned.
MATRICES = {"1 0 0 1": 0, "0 1 -1 0": 270, "-1 0 0 -1": 180, "0 -1 1 0": 90}


@pytest.fixture
def read(tmp_path):
    """Read a file in a page process, or measure it."""

    def run(data: bytes, name: str = "page.pdf", measure=False, **options):
        file = tmp_path / name
        file.write_bytes(data)
        with PageProcess(Drawing(TILER, **options)) as process:
            method = process.measure if measure else process.read
            pages = method([Document("its name", file)], lambda name, page: False)
            pages = [*pages]
        assert {page.file for page in pages} == {"its name"}
        return pages

    return run


def opened(page: Page) -> Image.Image:
    assert page.error is None, page.error
    return ImageOps.exif_transpose(Image.open(io.BytesIO(page.image)))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(kind: str) -> bytes:
    """An image of 60x80 that is displayed as 80x60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(solid("red"), kind, exif=exif)


FILES = {
    "text.pdf": text_pdf("a"),
    "landscape.pdf": text_pdf("a", rotate=90),
    "odd.pdf": blank_pdf(333.3, 71.7),
    "three.tif": tiff([solid("red", (60, 80)), solid("red", (9, 900)), solid("red")]),
    "fine.tif": tiff([solid("red", (6000, 5000))]),
    "deep.tif": tiff([Image.fromarray(np.zeros((4000, 9), np.uint16))]),
    "turned.tif": turned("TIFF"),
    "turned.jpg": turned("JPEG"),
    "turned.png": turned("PNG"),
    "turned.avif": turned("AVIF"),
    "photo.gif": saved(solid("red"), "GIF"),
    "large.jp2": saved(solid("red", (5000, 2000)), "JPEG2000"),
}


@pytest.mark.parametrize("turn", [0, 90, 180])
@pytest.mark.parametrize("name", FILES)
def test_a_page_is_measured_as_it_is_drawn(read, name, turn):
    drawn = read(FILES[name], name, turn=turn)
    assert [page.size for page in drawn] == [opened(page).size for page in drawn]
    measured = read(FILES[name], name, measure=True, turn=turn)
    sizes = [Page(p.file, p.number, size=p.size, last=p.last) for p in drawn]
    assert measured == sizes
    assert [page.last for page in drawn] == [False] * (len(drawn) - 1) + [True]


def test_a_thousand_pages_are_measured_in_seconds(read):
    start = time.perf_counter()
    pages = read(pdf([draw_text("a")] * 1000), measure=True)
    assert time.perf_counter() - start < 10  # 0.5 here, with the start of the process
    assert [page.number for page in pages] == [*range(1, 1001)]


def test_what_cannot_be_measured_says_why(read):
    (page,) = read(encrypted_pdf(), measure=True)
    assert page.error == "The PDF is encrypted and needs a password."


@pytest.mark.parametrize("turn", [90, 180, 270])
@pytest.mark.parametrize("name", ["page.pdf", "page.jpg", "page.png", "page.tif"])
def test_pages_are_turned_clockwise(read, name, turn):
    image = Image.new("RGB", (600, 800), "white")
    image.paste("red", (0, 0, 300, 400))  # the upper left quarter
    make = {"pdf": pdf, "tif": tiff}.get(name[5:])
    data = make([image]) if make else saved(image, Image.EXTENSION[name[4:]])
    (page,) = read(data, name, turn=turn)
    drawn = opened(page).convert("RGB")
    assert (drawn.width < drawn.height) == (turn == 180)
    quarters = {90: (0.75, 0.25), 180: (0.75, 0.75), 270: (0.25, 0.75)}
    for at, (x, y) in {0: (0.25, 0.25), **quarters}.items():
        pixel = drawn.getpixel((int(drawn.width * x), int(drawn.height * y)))
        assert (pixel[1] < 9) == (at == turn), at
    kind = "image/jpeg" if name == "page.jpg" else "image/png"
    assert page.media_type == kind


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("matrix", MATRICES)
def test_the_text_layer_and_its_direction(read, matrix, rotate):
    data = text_pdf("Total: 12.50", "Thank you", matrix=matrix, rotate=rotate)
    (page,) = read(data, text_layer=True)
    assert page.text == "Total: 12.50\nThank you"
    assert page.angle == -(MATRICES[matrix] + rotate) % 360
    (upright,) = read(data, text_layer=True, turn=page.angle)
    assert upright.angle == 0
    # Drawn as a text that was never turned.
    (expected,) = read(text_pdf("Total: 12.50", "Thank you"))
    boxes = [
        ImageOps.invert(opened(p).convert("L")).getbbox() for p in (upright, expected)
    ]
    sizes = [(right - left, low - top) for left, top, right, low in boxes]
    scale = upright.size[0] / (792 if (page.angle + rotate) % 180 else 612)
    expected_scale = expected.size[0] / 612
    for found, wanted in zip(*sizes, strict=True):
        assert found / scale == pytest.approx(wanted / expected_scale, abs=2)


def test_most_characters_decide_the_direction(read):
    data = drawn_pdf(
        b"BT /F 20 Tf 0 1 -1 0 300 100 Tm (a long line up the page) Tj "
        b"1 0 0 1 300 700 Tm (Page 7) Tj ET",
        resources=HELVETICA,
    )
    assert read(data, text_layer=True)[0].angle == 90


def test_line_feeds_of_pdfium_have_no_direction(read):
    """It puts them between letters that are far apart."""
    places = (b"300 100", b"300 140", b"300 180", b"330 180")
    letters = b"".join(b"0 1 -1 0 %b Tm (a) Tj " % place for place in places)
    data = drawn_pdf(b"BT /F 20 Tf " + letters + b"ET", resources=HELVETICA)
    assert read(data, text_layer=True)[0].angle == 90


def test_pages_without_a_text_layer_have_none(read):
    for name, data in {
        "a.pdf": pdf([draw_text("a")]),
        "a.png": FILES["turned.png"],
    }.items():
        (page,) = read(data, name, text_layer=True)
        assert (page.text, page.angle) == (None, 0)
    assert read(text_pdf("a"))[0].text is None  # not asked for


def test_the_text_of_a_page_is_bounded(read):
    line = b"(" + b"endless " * 1000 + b") Tj\n"
    data = drawn_pdf(
        b"BT /F 1 Tf 1 0 0 1 9 400 Tm " + line * 300 + b" ET",
        resources=HELVETICA,
    )
    (page,) = read(data, text_layer=True)
    assert page.error is None and 1_000_000 < len(page.text.encode()) <= 1 << 20


def test_passwords_are_tried(read):
    data = locked_pdf("sesame", "secret")
    for passwords in (("sesame",), ("wrong", "sesame")):
        (page,) = read(data, passwords=passwords, text_layer=True)
        assert (page.error, page.text) == (None, "secret")
        (page,) = read(data, measure=True, passwords=passwords)
        assert page.size == (1583, 2048)
    (page,) = read(data, passwords=("wrong",))
    assert page.error == "The PDF is encrypted, and no given password opens it."
    (page,) = read(text_pdf("open"), passwords=("sesame",), text_layer=True)
    assert page.text == "open"


def test_blank_pages_are_found(read):
    for name, data in {
        "page.pdf": blank_pdf(612, 792),
        "page.png": FILES["turned.png"],
    }.items():
        (page,) = read(data, name, find_blank=True)
        assert page.blank and page.image
        assert not read(data, name)[0].blank  # not asked for
    assert not read(text_pdf("7"), find_blank=True)[0].blank


def test_heic_is_read(read):
    pillow_heif.register_heif_opener()
    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    data = saved(image, "HEIF", quality=90)
    (page,) = read(data, "photo.heic")
    drawn = np.asarray(opened(page).convert("RGB")).astype(int)
    assert (page.media_type, page.size) == ("image/png", (64, 48))
    assert np.abs(drawn - np.asarray(image)).max() < 16
