"""Which pages get records, in what order, and what happens to files meanwhile."""

import asyncio

import pytest

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents import connect
from nemotron_vl.documents.finding import Found, find_documents
from nemotron_vl.documents.job import Job, Options
from nemotron_vl.documents.pages import Drawing
from nemotron_vl.documents.records import PageRecords
from nemotron_vl.documents.requests import Question
from nemotron_vl.documents.served import Served
from support.documents import pdf, solid, text_pdf

OPTIONS = Options(Drawing(Tiler.from_model(None, 1)), at_once=1)


@pytest.fixture
def report(tmp_path):
    """A document of two pages, in a folder of its own."""
    file = tmp_path / "folder" / "report.pdf"
    file.parent.mkdir()
    file.write_bytes(pdf([solid("red"), solid("blue")]))
    return file


def read(server, place, out, **options):
    """Ask about documents, and return the records of the file in order."""

    async def ask(records, job):
        served = Served("fake", None, Question("?", max_tokens=9))
        async with connect(server.url) as client:
            async for record in job.answers(client, served):
                records.append(record)

    found = find_documents([place]).documents
    with (
        PageRecords(out, {"question": "?"}) as records,
        Job(found, OPTIONS._replace(**options), records) as job,
    ):
        asyncio.run(ask(records, job))
        for record in job.copied():
            records.append(record)
        return [*records]


def drawn(place, **options):
    """A job that draws documents, and its pages."""
    job = Job(find_documents([place]).documents, OPTIONS._replace(**options))
    return job, job.pages()


def test_an_empty_answer_is_written_before_the_next_page_is_asked(
    server, report, tmp_path
):
    server.answer = lambda request: "" if len(server.requests) == 1 else "yes"
    found = read(server, report, tmp_path / "out")
    assert [(r["page"], r["answer"]) for r in found] == [(1, ""), (2, "yes")]


def test_only_pages_without_a_record_are_taken_from_an_equal_document(
    server, report, tmp_path
):
    out = tmp_path / "out"
    server.answer = lambda request: "before"
    read(server, report, out, pages={1})
    equal = report.with_name("a.pdf")  # the first by name is asked
    equal.write_bytes(report.read_bytes())
    server.answer = lambda request: "later"
    found = {(r["file"], r["page"]): r for r in read(server, report.parent, out)}
    assert len(found) == 4 and len(server.requests) == 3
    own, copied = found[str(report), 1], found[str(report), 2]
    assert own["answer"] == "before" and "copy_of" not in own
    assert copied["answer"] == "later" and copied["copy_of"] == str(equal)


@pytest.mark.parametrize("compared", [False, True])
def test_text_layers_that_are_read_for_other_ends_are_not_compared(
    server, tmp_path, compared
):
    (tmp_path / "a.pdf").write_bytes(text_pdf("Total: 12"))
    drawing = OPTIONS.drawing._replace(text_layer=True)
    options = {"text_layer": True} if compared else {}
    found = read(
        server, tmp_path / "a.pdf", tmp_path / "out", drawing=drawing, **options
    )
    assert ["text_layer" in record for record in found] == [compared]


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_is_another_one_after_it_was_drawn_says_so(report, change):
    job, pages = drawn(report)
    with job:
        assert next(pages).number == 1
        if change == "removed":
            report.unlink()
        else:
            report.write_bytes(pdf([solid("lime", (80, 60))] * 2))
        *_, last = pages
    assert last.number is None
    assert last.error.startswith("The file changed while it was read.")


def test_a_document_that_is_left_and_has_changed_has_one_error(report):
    job, pages = drawn(report, most_pages=1)
    with job:
        next(pages)
        report.write_bytes(pdf([solid("lime", (80, 60))] * 2))
        (rest,) = pages
    assert rest.number is None and "more than 1 pages" in rest.error


def test_a_document_that_cannot_be_fetched_has_an_error(memory):
    url = "memory://gone.pdf"
    with Job([Found(url, url)], OPTIONS) as job:
        (page,) = job.pages()
    assert (page.file, page.number) == (url, None)
    assert "cannot be fetched" in page.error
