"""Documents become pages: their size, their order, and what is wrong with them."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents.finding import find_documents
from nemotron_vl.documents.pages import (
    Document,
    Drawing,
    Page,
    count_pages,
    read_pages,
)
from support.chat import saved
from support.documents import blank_pdf, encrypted_pdf, pdf, solid, tiff

PUBLISHED = Tiler.from_model(None)
COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


def pages(*files: Path, tiler: Tiler = PUBLISHED, done=()) -> list[Page]:
    documents = [Document(str(file), file) for file in files]
    return list(read_pages(documents, Drawing(tiler), lambda *page: page in done))


def opened(page: Page) -> Image.Image:
    assert page.error is None, page.error
    return Image.open(io.BytesIO(page.image))


# Points, and the grid that has most tiles
SHAPES = {
    "A4": (595.28, 841.89, (3, 4)),
    "Letter": (612, 792, (3, 4)),
    "Legal": (612, 1008, (3, 4)),
    "A3 across": (1190.55, 841.89, (4, 3)),
    "slide": (960, 540, (4, 3)),
    "square": (300, 300, (3, 3)),
    "receipt": (226, 800, (2, 6)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_page_fills_its_tiles(tmp_path, shape):
    width, height, (columns, rows) = SHAPES[shape]
    file = tmp_path / "page.pdf"
    file.write_bytes(blank_pdf(width, height))
    (page,) = pages(file)
    drawn = opened(page)
    assert PUBLISHED.grid_for(*drawn.size, "fast")[:2] == (columns, rows)
    across, down = drawn.width / (512 * columns), drawn.height / (512 * rows)
    assert 1 <= min(across, down) < 1.002  # covers the grid, with one side exactly
    assert max(across, down) < 2
    assert drawn.width / drawn.height == pytest.approx(width / height, rel=0.002)


def test_the_most_tiles_set_the_resolution(tmp_path):
    file = tmp_path / "page.pdf"
    file.write_bytes(blank_pdf(612, 792))
    (page,) = pages(file, tiler=Tiler.from_model(None, 6))
    assert opened(page).size == (1187, 1536)


@pytest.mark.parametrize("width", [1, 5000])
def test_a_strip_takes_bounded_pixels(tmp_path, width):
    file = tmp_path / "strip.pdf"
    file.write_bytes(blank_pdf(width, 50))
    (page,) = pages(file)
    drawn = opened(page)
    assert drawn.width * drawn.height < 2.1 * 12 * 512 * 512


@pytest.mark.parametrize(("kind", "write"), [("pdf", pdf), ("tiff", tiff)])
def test_the_pages_come_in_order(tmp_path, kind, write):
    file = tmp_path / f"colours.{kind}"
    file.write_bytes(write(map(solid, COLOURS)))
    found = pages(file)
    assert count_pages(file) == 3
    assert [page.number for page in found] == [1, 2, 3]
    for page, colour in zip(found, COLOURS.values(), strict=True):
        middle = opened(page).convert("RGB").getpixel((30, 40))
        assert np.abs(np.subtract(middle, colour)).max() < 5
    two = pages(file, done={(str(file), 2)})
    assert two == [found[0], found[2]]


def test_what_is_filled_into_a_form_is_drawn(tmp_path):
    """A field without an appearance of its own, filled with black."""
    field = (
        "4 0 obj <</Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (HHHHHH) /F 4 "
        "/Rect [0 0 612 792] /DA (/Helv 200 Tf 0 g) /MK <</BG [0]>> >> endobj\n"
    )
    text = blank_pdf(612, 792, extra=field).decode()
    text = text.replace("/Catalog", "/Catalog /AcroForm <</Fields [4 0 R]>>")
    text = text.replace("/Type /Page ", "/Type /Page /Annots [4 0 R] ")
    file = tmp_path / "form.pdf"
    file.write_text(text)
    (page,) = pages(file)
    assert opened(page).convert("L").getextrema()[0] < 250


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_is_sent_as_it_is(tmp_path, photo, kind):
    file = tmp_path / f"photo.{kind.lower()}"
    file.write_bytes(saved(photo, kind))
    (page,) = pages(file)
    assert page.image == file.read_bytes()
    assert page.media_type == f"image/{kind.lower()}"
    assert page.number == 1


GREY = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(10, 10)


@pytest.mark.parametrize(
    ("image", "levels"),
    [
        (Image.fromarray(GREY), (0, 65535)),
        (Image.fromarray((GREY / 65535).astype(np.float32)), (0, 255)),
        (Image.fromarray((GREY > 999).astype(bool)), (0, 255)),
        (Image.fromarray((GREY >> 8).astype(np.uint8)).convert("CMYK"), (0, 255)),
    ],
    ids=["16 bits", "float", "1 bit", "CMYK"],
)
def test_a_tiff_keeps_its_levels(tmp_path, image, levels):
    file = tmp_path / "page.tif"
    image.save(file)
    (page,) = pages(file)
    drawn = opened(page)
    drawn = drawn.convert("L") if drawn.mode == "RGB" else drawn
    assert drawn.getextrema() == levels
    assert drawn.size == (10, 10)


@pytest.mark.parametrize("kind", ["tif", "avif"])
def test_a_turned_scan_is_upright(tmp_path, kind):
    scan = solid("white", (60, 80))
    exif = scan.getexif()
    exif[0x0112] = 6
    file = tmp_path / f"scan.{kind}"
    scan.save(file, exif=exif)
    (page,) = pages(file)
    assert opened(page).size == (80, 60)


BROKEN = {
    "encrypted.pdf": (encrypted_pdf(), "The PDF is encrypted and needs a password."),
    "cut.pdf": (pdf([solid("red")])[:100], "The PDF cannot be opened: "),
    "empty.pdf": (b"", "The file is empty."),
    "text.tif": (b"no image", "It is a text file."),
    "noise.tif": (bytes(99), "It is not an image of a known format."),
    "flat.pdf": (blank_pdf(612, 0), ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_document_that_cannot_be_read_is_one_page_with_its_cause(tmp_path, name):
    data, cause = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    good = tmp_path / "good.png"
    solid("red").save(good)
    bad, last = pages(tmp_path / name, good)
    assert last.file == str(good) and last.error is None
    if name == "flat.pdf":  # PDFium gives it the size of a letter
        assert bad.error is None
    else:
        assert cause in bad.error
        assert bad.number is None
        assert count_pages(tmp_path / name) == 1


def test_a_broken_page_does_not_stop_the_others(tmp_path):
    whole = tiff([solid("red"), solid("lime"), solid("blue")])
    file = tmp_path / "scan.tif"
    file.write_bytes(whole)
    with Image.open(file) as scan:
        scan.seek(1)
        offset = scan.tag_v2[273][0]  # StripOffsets
    broken = bytearray(whole)
    place = whole.find(offset.to_bytes(4, "little"))
    broken[place : place + 4] = (len(whole) + 99).to_bytes(4, "little")
    file.write_bytes(broken)
    found = pages(file)
    assert [page.error is None for page in found] == [True, False, True]
    assert found[1].number == 2


CODE = """
import resource, sys
from pathlib import Path
from nemotron_vl.documents.pages import Document, Drawing, read_pages
from nemotron_vl.checkpoints.tiler import Tiler
tiler = Tiler.from_model(None, 1)._replace(image_size=256)
drawing = Drawing(tiler, text_layer=True, find_blank=True)
documents = [Document("long.pdf", Path(sys.argv[1]))]
pages = read_pages(documents, drawing, lambda *_: False)
for number, page in enumerate(pages, 1):
    assert page.number == number and page.error is None
    if number in (10, 1000):
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_thousand_pages_take_the_memory_of_a_few(tmp_path, photo):
    file = tmp_path / "long.pdf"
    file.write_bytes(pdf([photo.resize((300, 200))] * 1000))
    assert count_pages(file) == 1000
    done = subprocess.run(
        [sys.executable, "-c", CODE, file], capture_output=True, text=True, check=True
    )
    ten, thousand = map(int, done.stdout.split())  # MB at the peak
    # All images together have 180 MB, all drawn pages 290 MB.
    assert thousand - ten < 60, (ten, thousand)


def test_a_scan_finer_than_its_tiles_is_reduced_to_them(tmp_path):
    file = tmp_path / "scan.tif"
    fine = np.zeros((7016, 4960), np.uint8)
    fine[:3508] = 255
    file.write_bytes(tiff([Image.fromarray(fine).convert("1"), solid("red")]))
    first, second = map(opened, pages(file))
    grid = PUBLISHED.grid_for(*first.size, "fast")
    assert (first.width, grid.columns, grid.rows) == (1536, 3, 4)
    assert first.height == pytest.approx(1536 * 7016 / 4960, abs=1)
    assert first.getpixel((9, 9)) == 255 and first.getpixel((9, 2000)) == 0
    assert second.size == (60, 80)


def test_16_bits_of_either_byte_order(tmp_path):
    levels = np.array([[0, 65535]], np.uint16)
    for order in "<>":
        file = tmp_path / f"{ord(order)}.tif"
        data = io.BytesIO()
        Image.fromarray(levels).save(data, "TIFF")
        file.write_bytes(data.getvalue() if order == "<" else big_endian(levels))
        drawn = opened(*pages(file))
        assert [drawn.getpixel((x, 0)) for x in (0, 1)] == [0, 65535], order


def big_endian(levels: np.ndarray) -> bytes:
    """A TIFF of 16-bit levels, the first byte of each the higher one."""
    entries = {256: levels.shape[1], 257: levels.shape[0], 258: 16, 262: 1}
    entries |= {273: 110, 277: 1, 278: levels.shape[0], 279: levels.nbytes}
    head = b"MM\0*" + (8).to_bytes(4) + len(entries).to_bytes(2)
    for tag, value in sorted(entries.items()):
        head += tag.to_bytes(2) + b"\0\4\0\0\0\1" + value.to_bytes(4)
    return head.ljust(110, b"\0") + levels.astype(">u2").tobytes()


def test_the_first_pages_of_a_cut_scan_are_read(tmp_path):
    file = tmp_path / "scan.tif"
    whole = tiff([solid("red"), solid("lime"), solid("blue")])
    file.write_bytes(whole[: len(whole) * 2 // 3 - 200])
    first, *others = pages(file)
    assert first.error is None
    assert others and others[-1].error is not None


def test_what_cannot_be_read_in_a_folder_is_named(tmp_path):
    (tmp_path / "dangling.pdf").symlink_to(tmp_path / "nothing.pdf")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    found = [Path(document.place) for document in find_documents([tmp_path]).documents]
    assert [file.name for file in found] == ["dangling.pdf", "loop.png"]
    assert all(page.error for page in pages(*found))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.mkdir()
    scandir = os.scandir

    def refuse(path):  # a test of root may read all
        if Path(path) == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (found,) = find_documents([tmp_path]).documents
    assert found.place == str(secret)
    (page,) = pages(secret)
    assert page.number is None and page.error
