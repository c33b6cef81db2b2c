"""A document that ends the process that reads it costs one record, not the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents import process as page_process
from nemotron_vl.documents.pages import Document, Drawing, read_pages
from nemotron_vl.documents.process import PageProcess
from support.documents import blank_pdf, pdf, solid

DEADLY, ENDLESS, HUGE = 11, 22, 33  # width of a page in points


class FaultyTiler(Tiler):
    """Acts like a fault of PDFium: it is called where a page is drawn."""

    def filling_scale(self, width, height):
        if width == DEADLY:
            os.kill(os.getpid(), signal.SIGSEGV)
        if width == ENDLESS:
            time.sleep(600)
        if width == HUGE:
            bytearray(6 << 30)
        return super().filling_scale(width, height)


@pytest.fixture
def process():
    with PageProcess(Drawing(FaultyTiler(*Tiler.from_model(None, 1)))) as process:
        yield process


def document(file: Path) -> Document:
    return Document(str(file), file)


def nothing(file: str, page: int | None) -> bool:
    return False


def test_pages_are_those_of_the_same_process(process, tmp_path):
    good, broken = tmp_path / "good.pdf", tmp_path / "broken.pdf"
    good.write_bytes(pdf(map(solid, ("red", "lime", "blue"))))
    broken.write_bytes(good.read_bytes()[:100])
    files = [*map(document, (good, broken, good))]
    drawing = Drawing(Tiler.from_model(None, 1))
    for done in (nothing, lambda file, page: page == 2):
        expected = list(read_pages(files, drawing, done))
        assert list(process.read(files, done)) == expected
    assert (process.count(good), process.count(broken)) == (3, 1)


def test_pages_that_are_measured_have_their_sizes_and_are_not_drawn(process, tmp_path):
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf(solid("red", size) for size in ((60, 80), (80, 60))))
    measured = list(process.measure([document(file)], nothing))
    assert not any(page.image for page in measured)
    drawn = list(process.read([document(file)], nothing))
    assert [p.size for p in measured] == [p.size for p in drawn]


def test_only_the_page_that_ends_the_process_is_lost(process, tmp_path):
    file, after = tmp_path / "report.pdf", tmp_path / "after.pdf"
    file.write_bytes(pdf(solid("red", (side, 80)) for side in (60, DEADLY, 60, DEADLY)))
    after.write_bytes(blank_pdf(60, 80))
    pages = list(process.read([*map(document, (file, after))], nothing))
    assert [page.number for page in pages] == [1, 2, 3, 4, 1]
    errors = [page.error for page in pages]
    ended = "It is damaged, and ended the process that reads it (signal 11)."
    assert errors == [None, ended, None, ended, None]


def test_a_page_that_takes_too_long_is_an_error(process, tmp_path, monkeypatch):
    monkeypatch.setattr(page_process, "MOST_SECONDS", 4.0)
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf(solid("red", (side, 80)) for side in (ENDLESS, 60)))
    endless, good = process.read([document(file)], nothing)
    assert (endless.number, endless.error) == (1, "Drawing took more than 4 s.")
    assert good.error is None


def test_a_document_that_cannot_be_opened_in_time(process, tmp_path, monkeypatch):
    file = tmp_path / "file.pdf"
    file.write_bytes(blank_pdf(60, 80))
    monkeypatch.setattr(page_process, "MOST_SECONDS", 0.0)  # the process starts
    assert process.count(file) == 1
    pages = process.read([document(file)] * 2, nothing)
    late = next(pages)
    monkeypatch.undo()
    (good,) = pages
    assert (late.number, good.number, good.error) == (None, 1, None)
    assert late.error == "Drawing took more than 0 s."


def test_a_document_of_many_slow_pages_is_left(process, tmp_path, monkeypatch):
    for name in ("_SPARE_SECONDS", "_SECONDS_OF_PAGE"):  # so each page is slow
        monkeypatch.setattr(page_process, name, 0.0, raising=False)
    file, after = tmp_path / "report.pdf", tmp_path / "after.pdf"
    file.write_bytes(pdf(solid("red", (60, 80)) for _ in range(50)))
    after.write_bytes(blank_pdf(60, 80))
    pages = list(process.read([*map(document, (file, file, after))], nothing))
    # Before the first page, opening the document has taken time, too.
    assert [page.number for page in pages] == [None, None, None]
    monkeypatch.setattr(page_process, "_SECONDS_OF_PAGE", 60.0)
    monkeypatch.setattr(page_process, "_SPARE_SECONDS", 60.0)
    assert len(list(process.read([*map(document, (file, after))], nothing))) == 51


def test_a_document_that_ends_the_process_again_and_again_is_left(process, tmp_path):
    file, after = tmp_path / "report.pdf", tmp_path / "after.pdf"
    file.write_bytes(pdf(solid("red", (DEADLY, 80)) for _ in range(50)))
    after.write_bytes(blank_pdf(60, 80))
    pages = list(process.read([*map(document, (file, after))], nothing))
    assert [page.number for page in pages] == [1, 2, 3, None, 1]
    assert pages[3].error == (
        "3 pages could not be drawn in time and memory. The others are left out."
    )
    assert pages[4].error is None


def test_the_pages_of_a_document_are_limited(tmp_path):
    file, after = tmp_path / "report.pdf", tmp_path / "after.pdf"
    file.write_bytes(pdf(map(solid, ("red", "lime", "blue"))))
    after.write_bytes(blank_pdf(60, 80))
    with PageProcess(Drawing(Tiler.from_model(None, 1)), most_pages=2) as process:
        assert process.count(file) == 2
        pages = list(process.read([*map(document, (file, after))], nothing))
    assert [page.number for page in pages] == [1, 2, None, 1]
    error = "It has more than 2 pages. The others are left out."
    assert [page.error for page in pages] == [None, None, error, None]


def test_memory_is_bounded(process, tmp_path):
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf(solid("red", (side, 80)) for side in (HUGE, 60)))
    huge, good = process.read([document(file)], nothing)
    assert (huge.number, huge.error) == (1, "It needs more than 4 GB of memory.")
    assert good.error is None


def test_no_process_is_left(tmp_path):
    file = tmp_path / "file.pdf"
    file.write_bytes(pdf(map(solid, ("red", "lime"))))
    before = {*psutil.Process().children()}
    with PageProcess(Drawing(Tiler.from_model(None, 1))) as process:
        next(process.read([document(file)], nothing))
        (own,) = (
            child
            for child in {*psutil.Process().children()} - before
            if "spawn_main" in " ".join(child.cmdline())
        )
    assert not own.is_running()


CODE = """
import sys
from pathlib import Path
from test_process import FaultyTiler, document, nothing
from nemotron_vl.documents.pages import Drawing
from nemotron_vl.documents.process import PageProcess
from nemotron_vl.checkpoints.tiler import Tiler
with PageProcess(Drawing(FaultyTiler(*Tiler.from_model(None, 1)))) as process:
    process.count(Path(sys.argv[1]))
    print(process._process.pid, flush=True)
    list(process.read([document(Path(sys.argv[1]))], nothing))
"""


def test_it_ends_with_a_parent_that_is_killed(tmp_path):
    """Also while a page is drawn."""
    file = tmp_path / "report.pdf"
    file.write_bytes(blank_pdf(ENDLESS, 80))
    tests = Path(__file__).parents[2]
    paths = [str(tests.parent), str(Path(__file__).parent), str(tests)]
    parent = subprocess.Popen(
        [sys.executable, "-c", CODE, file],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    reader = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    reader.wait(20)  # raises TimeoutExpired if it still runs
