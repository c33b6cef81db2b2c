"""Options of `nemotron-vl read`: which pages are read, how, and what is done again."""

import json
import os
import re

import pytest
from PIL import Image, ImageDraw

from nemotron_vl.main import main
from support.documents import blank_pdf, drawn_pdf, locked_pdf, pdf, solid, tiff
from support.fake_server import image_of
from support.read_command import ALL, arguments, places, records


def test_a_file_that_has_changed_is_read_again(server, folder, out, capsys):
    report = folder / "report.pdf"
    main(arguments(server, folder, out))
    report.write_bytes(pdf([solid("red", (80, 60))] * 2))
    os.utime(folder / "scan.tif", (1, 1))  # its content is the same
    server.requests.clear()
    assert main(arguments(server, folder, out)) == 1
    captured = capsys.readouterr()
    assert "report.pdf: it has changed and is read again" in captured.err
    assert "records: 7, new: 2 at " in captured.out
    assert len(server.requests) == 2
    pages = [r for r in records(out) if r["file"] == str(report)]
    assert [(r["page"], r["answer"]) for r in pages] == [
        (1, "2048x1536"),
        (2, "2048x1536"),
    ]
    assert len(records(out)) == 7


def test_a_file_that_changes_while_it_is_read_is_named(server, folder, out, capsys):
    report = folder / "report.pdf"

    def answer(request):
        if server.requests:
            report.write_bytes(pdf([solid("red", (80, 60))] * 3))
        return "yes"

    server.answer = answer
    assert main(arguments(server, report, out, "--at-once", "1")) == 1
    assert "report.pdf: The file changed while it was read." in capsys.readouterr().err
    server.answer = lambda request: "new"
    assert main(arguments(server, report, out)) == 0
    assert [r["answer"] for r in records(out)] == ["new"] * 3


def test_answers_with_other_settings_need_another_file(server, folder, out, capsys):
    page = folder / "photo.png"
    main(arguments(server, page, out))
    for option, message in (
        (["--max-tokens", "9"], "max tokens '2048', not '9'"),
        (["--max-tiles", "3"], "max tiles 'null', not '3'"),
        (["--model", "other"], "model 'fake', not 'other'"),
        (["--per", "document"], "per 'page', not 'document'"),
        (["--root", str(folder)], "relative 'false', not 'true'"),
    ):
        assert main(arguments(server, page, out, *option)) == 2
        assert message in capsys.readouterr().err
    # Another model of the server is only seen when it is asked.
    server.models = [{"id": "new"}]
    assert main(arguments(server, page, out)) == 0
    assert main(arguments(server, folder / "report.pdf", out)) == 2
    assert "model 'fake', not 'new'" in capsys.readouterr().err
    assert len(records(out)) == 1


def cut(server, text: str) -> None:
    """Let the server cut its answers."""
    respond = server.respond

    def answer(request):
        status, body = respond(request)
        body["choices"][0] |= {"finish_reason": "length"}
        return status, body

    server.answer, server.respond = lambda request: text, answer


def test_cut_answers_are_counted_and_done_again(server, folder, out, capsys):
    page, respond = folder / "photo.png", server.respond
    cut(server, "again " * 20)
    assert main(arguments(server, page, out, "--max-tokens", "9")) == 0
    captured = capsys.readouterr()
    assert "errors: 0, cut: 1 (--retry-cut)" in captured.out
    named = "It repeats itself up to the limit of 9 tokens."
    assert named in captured.err and records(out)[0]["cut"] == named
    assert main(arguments(server, page, out, "--max-tokens", "9")) == 0
    assert len(server.requests) == 1
    server.respond = respond
    longer = ("--max-tokens", "99", "--retry-cut")
    assert main(arguments(server, page, out, *longer)) == 0
    (record,) = records(out)
    assert "cut" not in record and len(server.requests) == 2
    head = json.loads(out.read_text().splitlines()[0])
    assert head["settings"]["max_tokens"] == 99


def test_what_is_not_read_is_counted(server, folder, out, capsys):
    for name in ("a.docx", "b.DOCX", "notes", ".hidden.docx"):
        (folder / name).write_bytes(b"x")
    main(arguments(server, folder, out))
    printed = capsys.readouterr().out
    assert printed.endswith("; not read: 2 .docx, 1 without a suffix\n")


def test_documents_of_other_folders_are_told_apart(server, folder, out, capsys):
    main(arguments(server, folder, out))  # two of its documents are errors
    other = folder.with_name("other")
    other.mkdir()
    solid("red").save(other / "one.png")
    capsys.readouterr()
    assert main(arguments(server, other, out)) == 0
    printed = capsys.readouterr().out
    assert "records: 1, new: 1" in printed
    assert "errors: 0, records of other documents: 8" in printed


@pytest.mark.parametrize("status", [400, 422])
def test_pages_that_are_refused_alike_end_the_run(server, folder, out, capsys, status):
    count = iter(range(100))

    def answer(request):
        return (status, f"no room for {next(count)}") if image_of(request) else "yes"

    server.answer = answer
    assert main(arguments(server, folder, out, "--at-once", "1")) == 2
    message = f"first 5 pages were refused alike, .* The server answered {status}: no "
    errors = capsys.readouterr().err
    assert len(server.requests) == 5
    assert re.search(message, errors)
    # Only the documents that cannot be opened have records.
    assert {r["page"] for r in records(out)} <= {None}
    assert main(arguments(server, folder, out, "--keep-going")) == 1
    assert places(out) == ALL


def test_a_few_refused_pages_are_records(server, folder, out):
    def answer(request):
        image = image_of(request)
        return (400, "too red") if image and image.size != (40, 30) else "yes"

    server.answer = answer
    assert main(arguments(server, folder / "report.pdf", out)) == 1
    assert [r["error"] for r in records(out)] == [
        "The server answered 400: too red"
    ] * 3


def test_answers_that_the_context_cannot_hold_are_refused(server, folder, out, capsys):
    server.models[0]["max_model_len"] = 4096
    assert main(arguments(server, folder, out, "--max-tokens", "4096")) == 2
    assert "do not fit the server's context of 4096" in capsys.readouterr().err
    assert not server.requests


def test_the_trial_asks_the_question(server, folder, out, capsys):
    server.answer = lambda request: (400, "<image> is not text.")
    assert main(arguments(server, folder, out, "--system", "Be <image>.")) == 2
    assert "refuses requests: 400: <image> is not text." in capsys.readouterr().err
    (trial,) = server.trials
    assert [m["content"] for m in trial["messages"]] == ["Be <image>.", "Read it."]


def test_pages_and_limit(server, folder, out):
    report = folder / "report.pdf"
    assert main(arguments(server, report, out, "--pages", "2-", "--limit", "1")) == 0
    assert places(out) == [("report.pdf", 2)]
    assert main(arguments(server, report, out, "--pages", "1, 3")) == 0
    assert places(out) == [("report.pdf", n) for n in (1, 2, 3)]
    assert len(server.requests) == 3


@pytest.mark.parametrize("pages", ["0", "3-1", "a", "1,,2", ""])
def test_pages_that_are_none(server, folder, out, capsys, pages):
    with pytest.raises(SystemExit):
        main(arguments(server, folder, out, f"--pages={pages}"))
    assert "is not like 1-3,7,10-" in capsys.readouterr().err


def test_what_reading_would_cost(folder, capsys):
    asked = ["read", str(folder), "--question", "?", "--dry-run", "--rate", "0.05"]
    assert main(asked) == 1
    captured = capsys.readouterr()
    # Each takes 12 tiles and a thumbnail.
    assert "documents: 5, pages: 6, tiles: 78, prompt tokens: 19980 and" in captured.out
    assert "answers: up to 12288 tokens, errors: 2" in captured.out
    assert "at 0.05 pages/s: 2 min 0 s" in captured.out
    assert "locked.pdf: The PDF is encrypted" in captured.err


def test_a_password_opens_a_document(server, folder, out, tmp_path):
    file = tmp_path / "passwords"
    file.write_text("wrong\n\n")
    passwords = ("--password-file", str(file))
    (folder / "locked.pdf").write_bytes(locked_pdf("sesame", "secret"))
    assert main(arguments(server, folder / "locked.pdf", out, *passwords)) == 1
    error = records(out)[0]["error"]
    assert "password" in error and "wrong" not in out.read_text()
    file.write_text("wrong\nsesame\n")
    again = (*passwords, "--retry-errors")
    assert main(arguments(server, folder / "locked.pdf", out, *again)) == 0
    assert places(out) == [("locked.pdf", 1)] and "sesame" not in out.read_text()


def test_blank_pages_are_not_asked(server, tmp_path, out):
    (tmp_path / "a.pdf").write_bytes(blank_pdf(612, 792))
    solid("red").save(tmp_path / "b.png")
    assert main(arguments(server, tmp_path, out, "--skip-blank")) == 0
    found = records(out)
    assert [(r["answer"], r["blank"]) for r in found] == [("", True)] * 2
    assert not server.requests


def test_a_page_without_an_answer_is_turned(server, tmp_path, out):
    page = Image.new("RGB", (60, 80), "white")
    ImageDraw.Draw(page).rectangle((0, 0, 20, 20), "black")
    (tmp_path / "a.tif").write_bytes(tiff([page, solid("white"), page]))
    corners = []

    def answer(request):
        image = image_of(request)
        if image is None:
            return "yes"
        pixels = image.convert("L")
        corners.append(pixels.getpixel((5, 5)))
        # It only reads pages whose mark is at the right below.
        mark = pixels.getpixel((image.width - 5, image.height - 5))
        return "read" if mark == 0 else " "

    server.answer = answer
    assert main(arguments(server, tmp_path, out, "--rotate", "auto")) == 0
    found = {r["page"]: (r["answer"], r.get("turned")) for r in records(out)}
    assert found == {1: ("read", 180), 2: (" ", None), 3: ("read", 180)}
    assert len(server.requests) == 3 + 3 + 3 + 1
    assert main(arguments(server, tmp_path, out, "--rotate", "auto")) == 0
    assert len(server.requests) == 10


TURNED = b"BT /F 20 Tf 0 1 -1 0 300 100 Tm (turned to the left) Tj ET"
UPRIGHT = b"BT /F 20 Tf 1 0 0 1 100 300 Tm (Total: 12) Tj ET"
FONT = "/Font <</F <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>>>"


def test_a_page_whose_text_is_turned_is_asked_upright(server, tmp_path, out):
    (tmp_path / "a.pdf").write_bytes(drawn_pdf(TURNED, resources=FONT))
    (tmp_path / "b.pdf").write_bytes(drawn_pdf(UPRIGHT, resources=FONT))
    assert main(arguments(server, tmp_path, out, "--rotate", "auto")) == 0
    found = {r["file"][-5:]: (r["answer"], r.get("turned")) for r in records(out)}
    upright, turned = found["b.pdf"], found["a.pdf"]
    assert upright[1] is None and turned[1] == 90
    assert turned[0] == "x".join(reversed(upright[0].split("x")))
    assert len(server.requests) == 2
    assert not any("text_layer" in record for record in records(out))


def test_answers_are_compared_with_the_text_layer(server, folder, tmp_path, out):
    (tmp_path / "b.pdf").write_bytes(drawn_pdf(UPRIGHT, resources=FONT))
    server.answer = lambda request: "Total:\n13"
    compare = ("--text-layer", "compare")
    assert main(arguments(server, tmp_path / "b.pdf", out, *compare)) == 0
    assert records(out)[0]["text_layer"] == {"cer": 0.1111, "characters": 9}
    assert main(arguments(server, folder / "photo.png", out, *compare)) == 0
    assert "text_layer" not in records(out)[1]


def test_a_document_is_asked_as_a_whole(server, folder, out):
    server.models[0]["max_model_len"] = 9000  # two pages, and 2,048 tokens of answer
    assert main(arguments(server, folder, out, "--per", "document")) == 1
    by_file = {}
    for record in records(out):
        name = record["file"].rpartition("/")[2]
        by_file.setdefault(name, []).append((record["page"], record.get("pages")))
    assert by_file["report.pdf"] == [(1, [1, 2]), (3, None)]
    assert by_file["scan.tif"] == [(1, [1, 2])]
    images = [len(r["messages"][0]["content"]) - 1 for r in server.requests]
    assert sorted(images) == [1, 1, 2, 2]
    assert main(arguments(server, folder, out, "--per", "document")) == 1
    assert len(server.requests) == 4


def test_ready_tasks(server, folder, out, tmp_path):
    page, asked = folder / "photo.png", ["--url", server.url, "--out", str(out)]
    assert main(["read", str(page), "--task", "text", *asked]) == 0
    assert server.requests[0]["messages"][0]["content"][1]["text"] == "Read the text."
    own = tmp_path / "own.toml"
    own.write_text('[total]\nquestion = "Total?"\nsystem = "Brief."\nmax_tokens = 7\n')
    out.unlink()
    assert (
        main(["read", str(page), "--task", "total", "--tasks", str(own), *asked]) == 0
    )
    request = server.requests[1]
    assert request["max_tokens"] == 7
    assert request["messages"][0]["content"] == "Brief."
