"""`nemotron-vl read` loses no answer and no page if files, drives or servers leave."""

import os
from pathlib import Path

import fsspec
import pytest

from nemotron_vl.documents import remote
from nemotron_vl.main import main
from support.documents import drawn_pdf, pdf, solid
from support.fake_server import image_of
from support.read_command import arguments, places, records

HELVETICA = "/Font <</F <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>>>"
TURNED = b"BT /F 20 Tf 0 1 -1 0 300 100 Tm (turned to the left) Tj ET"


def test_pages_that_are_turned_are_read_before_a_document_is_left(
    server, tmp_path, out
):
    """Its record without a page does not keep them from being asked."""
    (tmp_path / "a.pdf").write_bytes(drawn_pdf(TURNED, resources=HELVETICA, pages=3))
    options = ("--rotate", "auto", "--max-pages", "2")
    assert main(arguments(server, tmp_path, out, *options)) == 1
    assert places(out) == [("a.pdf", 1), ("a.pdf", 2), ("a.pdf", None)]
    assert [r.get("turned") for r in records(out)].count(90) == 2


def test_a_drive_that_is_not_there_changes_nothing(
    server, folder, out, tmp_path, capsys
):
    links = tmp_path / "links"
    links.mkdir()
    for name in ("photo.png", "report.pdf"):
        (links / name).symlink_to(folder / name)
    assert main(arguments(server, links, out)) == 0
    before = out.read_bytes()
    folder.rename(folder.with_name("away"))
    assert main(arguments(server, links, out)) == 0
    assert "it is not there now; its records stay" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("limit", [(), ("--limit", "1")])
def test_answers_stay_until_others_replace_them(server, folder, out, limit):
    respond, report = server.respond, folder / "report.pdf"

    def cut(request):
        status, body = respond(request)
        body["choices"][0] |= {"finish_reason": "length"}
        return status, body

    server.respond = cut
    assert main(arguments(server, report, out)) == 0
    before = out.read_bytes()
    url, server.url = server.url, "http://127.0.0.1:9"
    assert main(arguments(server, report, out, "--retry-cut")) == 2
    assert out.read_bytes() == before
    server.url, server.respond = url, respond
    assert main(arguments(server, report, out, "--retry-cut", *limit)) == 0
    assert len(places(out)) == 3
    assert sum("cut" in record for record in records(out)) == (2 if limit else 0)


def test_a_file_that_is_only_touched_while_it_is_read_is_the_same(server, folder, out):
    report = folder / "report.pdf"

    def answer(request):
        os.utime(report, (len(server.requests), 1))
        return "yes"

    server.answer = answer
    assert main(arguments(server, report, out, "--at-once", "1")) == 0
    assert len(records(out)) == 3


def test_a_file_that_is_replaced_while_others_are_read_is_read_anew(
    server, folder, out
):
    report = folder / "report.pdf"
    assert main(arguments(server, report, out, "--pages", "1-2")) == 0

    def answer(request):
        image = image_of(request)
        if image and image.size == (40, 30):  # the page before it
            report.write_bytes(pdf([solid("red", (80, 60))] * 3))
        return "" if image is None else f"{image.width}x{image.height}"

    server.answer = answer
    pages = [str(folder / "photo.png"), str(report)]
    command = arguments(server, pages[0], out, "--at-once", "1")
    assert main([*command[:2], pages[1], *command[2:]]) == 0
    answers = [r["answer"] for r in records(out) if r["file"] == str(report)]
    assert answers == ["2048x1536"] * 3


def test_a_blank_page_says_nothing_about_the_options(server, tmp_path, out, capsys):
    blank, page = solid("white"), solid("white")
    page.paste("black", (9, 9, 30, 30))
    (tmp_path / "a.pdf").write_bytes(pdf([blank, *[page] * 6]))
    server.answer = lambda request: (400, "no") if image_of(request) else "yes"
    assert main(arguments(server, tmp_path, out, "--skip-blank")) == 2
    assert "refused alike" in capsys.readouterr().err
    assert places(out) == [("a.pdf", 1)]


@pytest.mark.parametrize(
    "option",
    [("--per", "document"), ("--rotate", "auto"), ("--text-layer", "compare")],
    ids=" ".join,
)
def test_a_batch_refuses_what_it_cannot_do(folder, tmp_path, capsys, option):
    where = ("--model", "m", "--batch", str(tmp_path / "b.jsonl"))
    assert main(["read", str(folder), "--question", "?", *where, *option]) == 2
    assert "--batch takes no --per" in capsys.readouterr().err


def test_a_batch_leaves_blank_pages_out(tmp_path, capsys):
    solid("white").save(tmp_path / "a.png")
    where = ("--model", "m", "--batch", str(tmp_path / "b.jsonl"), "--skip-blank")
    assert main(["read", str(tmp_path / "a.png"), "--question", "?", *where]) == 0
    assert "requests: 0, errors: 0" in capsys.readouterr().out


def test_an_outage_is_no_error_of_its_pages(server, folder, out):
    """Also if an answer may take less time than the server."""

    def answer(request):
        return (503, "gone") if server.requests else "yes"

    server.answer = answer
    options = ("--timeout", "1", "--wait", "60")
    assert main(arguments(server, folder / "report.pdf", out, *options)) == 2
    assert records(out) == []


def test_records_that_cannot_be_uploaded_are_kept(
    server, folder, monkeypatch, capsys, tmp_path
):
    system = fsspec.filesystem("memory")
    system.store.clear()
    monkeypatch.setattr(remote, "_SECONDS", 0.0)
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))

    def refuse(*_, **__):
        raise PermissionError("the key has expired")

    monkeypatch.setattr(type(system), "put_file", refuse)
    assert main(arguments(server, folder / "report.pdf", "memory://a.jsonl")) == 2
    message = capsys.readouterr().err
    assert "memory://a.jsonl cannot be written: the key has expired" in message
    kept = Path(message.rpartition("The records are in ")[2].strip()[:-1])
    assert len(records(kept)) == 3
