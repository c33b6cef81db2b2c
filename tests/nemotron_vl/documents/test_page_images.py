"""The checking page shows the pages that were asked, or says why it does not."""

import hashlib
import io
import time
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from mail import write_mail
from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents import page_images
from nemotron_vl.documents.page_images import MOST_HEIGHT, draw_images
from nemotron_vl.documents.results import read_records
from support.documents import locked_pdf, pdf, solid
from support.export_command import write

TILER = Tiler.from_model(None)


def drawn(records, root=None):
    """Pages by file and number."""
    found = draw_images(read_records(records), TILER, root)
    return {(name, page.number): page for name, page in found}


def opened(page):
    assert page.error is None
    return Image.open(io.BytesIO(page.image))


def one(tmp_path, file="a.png", page=1, root="", **others):
    """The image of a record's only page."""
    record = {"file": file, "page": page, "answer": "x", **others}
    records = write(tmp_path / "r.jsonl", record, root=root or str(tmp_path))
    return drawn(records)[file, page]


def test_the_pages_of_records_are_drawn_and_reduced(tmp_path):
    pages = drawn(write_mail(tmp_path))
    images = {key: opened(page) for key, page in pages.items()}
    assert len(images) == 9  # the document that is broken has no page
    assert all(i.format == "WEBP" and i.height <= MOST_HEIGHT for i in images.values())
    assert images["invoices/Nordlicht 2024-031.pdf", 1].height == MOST_HEIGHT
    # It was photographed lying on its side.
    width, height = images["receipts/caf\u00e9.jpg", 1].size
    assert width < height


def test_an_answer_about_several_pages_has_an_image_of_each(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([solid("red"), solid("blue"), solid("red")]))
    record = {"file": "a.pdf", "page": 1, "pages": [1, 3], "answer": "x"}
    records = write(tmp_path / "r.jsonl", record, root=str(tmp_path), per="document")
    pages = drawn(records)
    assert [*pages] == [("a.pdf", 1), ("a.pdf", 3)] and all(map(opened, pages.values()))


def test_a_pdf_has_its_own_text_and_an_image_has_none(tmp_path):
    pages = drawn(write_mail(tmp_path))
    assert "Gesamt EUR" in pages["invoices/Nordlicht 2024-031.pdf", 1].text
    assert pages["forms/bicycle.png", 1].text is None


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_a_page_is_turned_clockwise_as_the_model_saw_it(tmp_path, turned):
    image = solid("white", (40, 20))
    image.paste("red", (0, 0, 20, 20))  # on the left
    image.save(tmp_path / "a.png")
    found = opened(one(tmp_path, turned=turned)).convert("RGB")
    width, height = found.size
    place = {
        0: (5, height // 2),
        90: (width // 2, 5),
        180: (width - 5, height // 2),
        270: (width // 2, height - 5),
    }[turned]
    red, green, _ = found.getpixel(place)
    assert red > 200 and green < 60
    assert (width < height) is (turned in (90, 270))


def test_a_photograph_is_shown_upright(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert opened(one(tmp_path, "a.jpg")).size == (20, 40)


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert opened(one(tmp_path)).convert("RGB").getpixel((9, 9)) > (250, 250, 250)


@pytest.mark.parametrize("mode", ["1", "I;16", "L", "LA", "P"])
def test_any_mode_is_shown(tmp_path, mode):
    Image.new(mode, (20, 20), 0).save(tmp_path / "a.png")
    assert opened(one(tmp_path)).size == (20, 20)


def test_a_document_that_has_changed_is_not_drawn(tmp_path):
    solid("red").save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    source = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert one(tmp_path, source=source).error is None
    for other in (source | {"bytes": 1}, source | {"sha256": "0" * 64}):
        page = one(tmp_path, source=other)
        assert (page.image, page.error) == (
            b"",
            "The document has changed since it was read.",
        )


@pytest.mark.parametrize(
    ("file", "cause"),
    [
        ("missing.pdf", "cannot be read: No such file"),
        ("s3://bucket/a.pdf", "needs a package: Install s3fs"),
        ("../../etc/passwd", "is not in the folder that was read"),
        ("a\0b", "is not on this machine"),
        (".", "is not a regular file"),
        ("broken.pdf", "PDF"),
        ("broken.png", "truncated"),
    ],
)
def test_what_cannot_be_drawn_says_why(tmp_path, file, cause):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    image = io.BytesIO()
    solid("red", (300, 300)).save(image, "PNG")
    (tmp_path / "broken.png").write_bytes(image.getvalue()[:60])
    page = one(tmp_path, file)
    assert not page.image and cause in page.error


def test_a_page_that_is_not_in_the_document_says_so(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([solid("red")]))
    assert one(tmp_path, "a.pdf", 7).error == "The document has no such page."


def test_relative_names_need_a_folder_and_another_one_may_be_given(tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    solid("red").save(moved / "a.png")
    record = {"file": "a.png", "page": 1, "answer": "x"}
    records = write(tmp_path / "r.jsonl", record)
    assert "(--root)" in drawn(records)["a.png", 1].error
    assert drawn(records, str(moved))["a.png", 1].error is None


def test_an_image_that_ends_the_process_is_an_error_and_the_next_is_shown(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(page_images, "_SECONDS", 0.0)
    solid("red").save(tmp_path / "a.png")
    reducer = page_images._Reducer()
    with reducer:
        with pytest.raises(ValueError, match="too much time or memory"):
            reducer((tmp_path / "a.png").read_bytes(), 0)()
        monkeypatch.setattr(page_images, "_SECONDS", 60.0)
        assert reducer((tmp_path / "a.png").read_bytes(), 0)()


def finish_late(content, turned):
    """In the place of `_reduce`: leaves a file when it is done."""
    time.sleep(5)
    Path(content.decode()).touch()


def test_an_image_that_takes_too_long_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(page_images, "_reduce", finish_late)
    monkeypatch.setattr(page_images, "_SECONDS", 0.1)
    done = tmp_path / "done"
    with (
        page_images._Reducer() as reduce,
        pytest.raises(ValueError, match="too much time or memory"),
    ):
        reduce(str(done).encode(), 0)()
    assert not done.exists()


def test_a_document_that_needs_a_password(tmp_path):
    (tmp_path / "a.pdf").write_bytes(locked_pdf("sesame", "secret"))
    records = write(tmp_path / "r.jsonl", {"file": "a.pdf", "page": 1, "answer": "x"})
    for passwords, text in ((), None), (("wrong", "sesame"), "secret"):
        found = draw_images(read_records(records), TILER, str(tmp_path), passwords)
        ((_, page),) = found
        assert page.text == text and bool(page.image) == (text is not None)


def test_documents_of_another_file_system(tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe("/box/a.pdf", pdf([solid("red")]))
    for root, name in ("memory://box", "a.pdf"), ("", "memory://box/a.pdf"):
        record = {"file": name, "page": 1, "answer": "x"}
        records = write(tmp_path / "r.jsonl", record, root=root or None)
        assert opened(drawn(records)[name, 1]).format == "WEBP"
    system.store.clear()
    assert "cannot be fetched" in drawn(records)[name, 1].error
