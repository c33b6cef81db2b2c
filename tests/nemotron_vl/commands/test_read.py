"""`nemotron-vl read` with a server without a model: its records and its batches."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from nemotron_vl.commands import arguments as command_arguments
from nemotron_vl.commands import read
from nemotron_vl.documents import records as page_records
from nemotron_vl.documents.finding import Source
from nemotron_vl.main import main
from support.documents import blank_pdf, solid
from support.fake_server import image_of
from support.read_command import ALL, SCHEMA, SIX, arguments, places, records

ROOT = Path(__file__).parents[3]


def test_each_page_has_a_record(server, folder, out, capsys):
    assert main(arguments(server, folder, out)) == 1
    assert places(out) == ALL
    by_place = {(r["file"].rpartition("/")[2], r["page"]): r for r in records(out)}
    page = by_place["report.pdf", 2]
    assert page.pop("seconds") > 0
    file = folder / "report.pdf"
    assert page == {
        "file": str(file),
        "page": 2,
        "answer": "1536x2048",
        "finish_reason": "stop",
        "tokens": {"prompt": 3330, "answer": 7},
        "source": Source.of(file)._asdict(),
    }
    assert by_place["photo.png", 1]["answer"] == "40x30"
    assert "needs a password" in by_place["locked.pdf", None]["error"]
    assert "cannot be opened" in by_place["broken.pdf", None]["error"]
    request = server.requests[0]
    assert request["model"] == "fake"
    assert request["temperature"] == 0
    assert [message["role"] for message in request["messages"]] == ["user"]
    assert request["messages"][0]["content"][1]["text"] == "Read it."
    captured = capsys.readouterr()
    assert "records: 8, new: 8 at " in captured.out
    assert "locked.pdf: The PDF is encrypted and needs a password." in captured.err


def test_a_second_start_does_what_is_left(server, folder, out, capsys):
    main(arguments(server, folder / "report.pdf", out))
    assert len(server.requests) == 3
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + lines[1] + lines[2][:-9])
    assert main(arguments(server, folder, out)) == 1
    assert len(server.requests) == 3 + 5
    assert places(out) == ALL
    # Files that cannot be read are not tried again, and nothing is asked.
    trials = len(server.trials)
    capsys.readouterr()
    assert main(arguments(server, folder, out)) == 1
    assert "records: 8, new: 0, errors: 2" in capsys.readouterr().out
    assert (len(server.requests), len(server.trials)) == (8, trials)
    # unless the user says so.
    (folder / "locked.pdf").write_bytes(blank_pdf(612, 792))
    assert main(arguments(server, folder, out, "--retry-errors")) == 1
    assert ("locked.pdf", 1) in places(out) and len(places(out)) == 8


def test_a_document_has_one_name(server, folder, out, monkeypatch):
    assert main(arguments(server, folder / "photo.png", out)) == 0
    monkeypatch.chdir(folder)
    assert main(arguments(server, Path("photo.png"), out)) == 0
    assert main(arguments(server, Path("../folder/photo.png"), out)) == 0
    assert places(out) == [("photo.png", 1)]


def test_errors_of_other_documents_stay(server, folder, out):
    assert main(arguments(server, folder, out)) == 1
    assert main(arguments(server, folder / "locked.pdf", out, "--retry-errors")) == 1
    assert places(out) == ALL


def test_another_question_needs_another_file(server, folder, out, capsys):
    main(arguments(server, folder, out))
    before = out.read_text()
    where = ("--url", server.url, "--out", str(out))
    assert main(["read", str(folder), "--question", "Other?", *where]) == 2
    message = "has answers with other settings: question 'Read it.', not 'Other?'."
    assert message in capsys.readouterr().err
    assert out.read_text() == before


def test_a_system_message_precedes_each_question(server, folder, out, capsys):
    main(arguments(server, folder, out, "--system", "Be brief."))
    batch = out.with_name("requests.jsonl")
    asked = ["--question", "?", "--model", "m", "--batch", str(batch)]
    main(["read", str(folder), *asked, "--system", "Be brief."])
    batched = [json.loads(line)["body"] for line in batch.read_text().splitlines()]
    assert len(batched) == len(server.requests) == 6 and server.trials
    for request in (*server.requests, *server.trials, *batched):
        first, second = request["messages"]
        assert first == {"role": "system", "content": "Be brief."}
        assert second["role"] == "user"
    assert main(arguments(server, folder, out)) == 2
    assert "system 'Be brief.', not 'null'" in capsys.readouterr().err


def test_a_batch_replaces_batches_only(folder, tmp_path, capsys):
    image = folder / "photo.png"
    asked = ["read", str(image), "--question", "?", "--model", "m"]
    before = image.read_bytes()
    assert main([*asked, "--batch", str(image)]) == 2
    assert "is no file of requests" in capsys.readouterr().err
    assert image.read_bytes() == before
    batch = tmp_path / "requests.jsonl"
    for _ in range(2):
        assert main([*asked, "--batch", str(batch)]) == 0
    assert len(batch.read_text().splitlines()) == 1
    with page_records.open_alone(tmp_path / "requests.jsonl.part"):
        assert main([*asked, "--batch", str(batch)]) == 2
    assert "Another process writes to" in capsys.readouterr().err


def test_a_name_that_is_not_utf_8(server, folder, out, tmp_path):
    odd = os.fsencode(folder) + b"/\xff.png"
    os.rename(folder / "photo.png", odd)
    batch = tmp_path / "requests.jsonl"
    asked = ["read", os.fsdecode(odd), "--question", "?", "--model", "m"]
    assert main([*asked, "--batch", str(batch)]) == 0
    assert json.loads(batch.read_text())["custom_id"].endswith(r"/\xff.png#1")
    for _ in range(2):
        assert main(arguments(server, os.fsdecode(odd), out)) == 0
    (record,) = records(out)
    assert (
        record["file"].encode().endswith(rb"/\xff.png")
    )  # no half of a surrogate pair


def test_a_batch_has_a_request_for_each_page(folder, tmp_path, capsys, schema):
    batch = tmp_path / "requests.jsonl"
    options = ["--model", "nvidia/model", "--batch", str(batch), "--schema", schema]
    assert main(["read", str(folder), *options]) == 1
    requests = [json.loads(line) for line in batch.read_text().splitlines()]
    assert [r["custom_id"].rpartition("/")[2] for r in requests] == [
        f"{name}#{number}" for name, number in SIX
    ]
    assert {(r["method"], r["url"]) for r in requests} == {
        ("POST", "/v1/chat/completions")
    }
    body = requests[1]["body"]
    assert body["model"] == "nvidia/model"
    assert image_of(body).size == (1536, 2048)
    assert body["response_format"]["format"]["json_schema"] == SCHEMA
    captured = capsys.readouterr()
    assert "requests: 6, errors: 2" in captured.out
    assert "locked.pdf: The PDF is encrypted" in captured.err
    assert not batch.with_name("requests.jsonl.part").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "o"], "Give --task, --question, --schema, or"),
        (["--out", "o", "--question", " "], "The question is empty."),
        (["--out", "o", "--question", "?", "--task", "text"], "has a question of its"),
        (["--out", "o", "--task", "none"], "tasks.toml has no task 'none'"),
        (["--out", "o", "--question", "?"], "Give --url of a server, or --model"),
        (["--batch", "b", "--question", "?"], "--batch needs --model"),
        (["--out", "o", "--schema", "nowhere.json"], "nowhere.json"),
        (["--out", "o", "--schema", "{folder}/notes"], "notes is not JSON: "),
        (["--out", "o", "--schema", "{folder}/odd.json"], "$.type: 'nothing' is not"),
        (["--out", "o", "--question", "?", "{folder}/none"], "none does not exist."),
        (
            ["--out", "o", "--question", "?", "--url", "http://u", "{folder}/empty"],
            "no PDFs",
        ),
    ],
)
def test_wrong_use_is_explained(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("no schema")
    (tmp_path / "odd.json").write_text('{"type": "nothing"}')
    (tmp_path / "empty").mkdir()
    paths = [] if any("{folder}" in o for o in options[-1:]) else [str(tmp_path)]
    if "--schema" in options:
        paths = [str(tmp_path)]
    filled = [option.format(folder=tmp_path) for option in options]
    if not any(tmp_path.name in option for option in filled):
        solid("red").save(tmp_path / "page.png")
    assert main(["read", *paths, *filled]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(folder, capsys, monkeypatch):
    real = command_arguments.find_spec
    monkeypatch.setattr(
        command_arguments,
        "find_spec",
        lambda name: None if name == "pypdfium2" else real(name),
    )
    assert main(["read", str(folder), "--question", "?", "--out", "o"]) == 2
    assert capsys.readouterr().err == (
        "nemotron-vl: `nemotron-vl read` needs more packages: pip install pypdfium2 "
        "(extras of this package)\n"
    )


def test_the_extra_installs_what_the_command_needs():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extra = settings["project"]["optional-dependencies"]["documents"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extra}
    assert names == {*read._PACKAGES, "tqdm"}
    for lock in (
        ROOT / "requirements" / "test.txt",
        *ROOT.glob("requirements/*/*.txt"),
    ):
        assert all(f"\n{name}==" in lock.read_text() for name in names), lock
