"""`nemotron-vl read` against a server without a model: nothing is lost."""

import asyncio
import contextlib
import functools
import http.server
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import openai
import psutil
import pytest

from nemotron_vl.commands import read
from nemotron_vl.documents import reading as page_reading
from nemotron_vl.documents import records as page_records
from nemotron_vl.documents.pages import Page
from nemotron_vl.documents.requests import Question
from nemotron_vl.main import main
from support.documents import blank_pdf, encrypted_pdf, pdf, slow_pdf, solid, tiff
from support.fake_server import BREAK, FakeServer, fake_server, image_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server():
    with fake_server() as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    """A folder of six pages, and two PDFs that cannot be read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "report.pdf").write_bytes(pdf([solid("red")] * 3))
    (folder / "scan.tif").write_bytes(tiff([solid("white")] * 2))
    solid("blue", (40, 30)).save(folder / "photo.png")
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "answers.jsonl"


def run(server: FakeServer, paths, out, *options: str) -> int:
    question = () if "--schema" in options else ("--question", "Read it.")
    where = ("--url", server.url, "--out", str(out))
    return main(["read", str(paths), *question, *where, *options])


def records(out) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def places(out) -> list[tuple[str, int | None]]:
    """File name and page of each record, in order of the names."""
    found = [(r["file"].rpartition("/")[2], r["page"]) for r in records(out)]
    return sorted(found, key=str)


SIX = [
    ("photo.png", 1),
    *(("report.pdf", number) for number in (1, 2, 3)),
    *(("scan.tif", number) for number in (1, 2)),
]
ALL = sorted([*SIX, ("broken.pdf", None), ("locked.pdf", None)], key=str)


def test_each_page_has_a_record(server, folder, out, capsys):
    assert run(server, folder, out) == 1
    assert places(out) == ALL
    by_place = {(r["file"].rpartition("/")[2], r["page"]): r for r in records(out)}
    page = by_place["report.pdf", 2]
    assert page.pop("seconds") > 0
    assert page == {
        "file": str(folder / "report.pdf"),
        "page": 2,
        "model": "fake",
        "answer": "1536x2048",
        "finish_reason": "stop",
        "tokens": {"prompt": 3330, "answer": 7},
        "question": page["question"],
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
    run(server, folder / "report.pdf", out)
    assert len(server.requests) == 3
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + lines[1][:-9])
    assert run(server, folder, out) == 1
    assert len(server.requests) == 3 + 5
    assert places(out) == ALL
    # Files that cannot be read are not tried again, and nothing is asked.
    trials = len(server.trials)
    capsys.readouterr()
    assert run(server, folder, out) == 1
    assert "records: 8, new: 0, errors: 2" in capsys.readouterr().out
    assert (len(server.requests), len(server.trials)) == (8, trials)
    # unless the user says so.
    (folder / "locked.pdf").write_bytes(blank_pdf(612, 792))
    assert run(server, folder, out, "--retry-errors") == 1
    assert ("locked.pdf", 1) in places(out) and len(places(out)) == 8


def test_killed_at_random_moments_it_loses_nothing(server, tmp_path, out):
    (tmp_path / "long.pdf").write_bytes(pdf([solid("red")] * 150))
    server.delay = 0.03
    command = [
        sys.executable,
        "-m",
        "nemotron_vl.main",
    ]
    command += ["read", tmp_path / "long.pdf", "--question", "?", "--url", server.url]
    command += ["--out", out, "--max-tiles", "1", "--at-once", "3"]
    chance = random.Random(0)
    kills = 0
    while kills < 5:
        before = out.read_bytes() if out.exists() else b""
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while (
                not out.exists() or out.stat().st_size <= len(before)
            ) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.random() * 0.25)
            process.kill()
        assert process.returncode == -9, "it was done before it was killed"
        kills += 1
        assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert 5 <= len(out.read_text().splitlines()) < 150
    subprocess.run(command, check=True, capture_output=True)
    assert sorted(r["page"] for r in records(out)) == list(range(1, 151))
    # What was in flight was asked again, and no more than that.
    assert len(server.requests) <= 150 + kills * 3


def test_a_terminal_shows_rate_and_time_left(server, folder, out):
    server.delay = 0.2
    command = [sys.executable, "-m", main.__module__, "read", folder, "--question", "?"]
    command += ["--url", server.url, "--out", out, "--at-once", "1"]
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen(command, stderr=theirs, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 1
    assert re.search(rb"5/8 \[00:0\d<00:0\d, .*(page/s|s/page)\]", shown), shown
    assert b"locked.pdf: The PDF is encrypted" in shown


def stop_by_hand(command: list, started: Callable[[], object]) -> None:
    """Send Ctrl-C's signal to a command once it has started."""
    # Tests that a shell runs in the background inherit that the signal is ignored.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        while not started():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.endswith("nemotron-vl: stopped; the same command goes on\n")
    assert "Traceback" not in errors


def test_stopped_by_hand_it_says_how_to_go_on(server, folder, out):
    server.delay = 0.5
    command = [sys.executable, "-m", main.__module__, "read", folder, "--question", "?"]
    command += ["--url", server.url, "--out", out, "--at-once", "1"]
    stop_by_hand(command, lambda: server.requests)
    assert run(server, folder, out, "--question", "?") == 1
    assert places(out) == ALL


BESIDE = """
import multiprocessing
import sys
import termios
from nemotron_vl.main import main
multiprocessing.set_executable(sys.executable)
sys.executable = sys.argv[1]  # vLLM's command is beside it
sys.exit(main(sys.argv[2:]))
"""


def test_a_server_ends_with_the_command_that_started_it(folder, tiny, tmp_path, out):
    """Also if that is killed. The server is a script in the place of vLLM."""
    started = tmp_path / "started"
    vllm = tmp_path / "vllm"
    vllm.write_text(f"#!/bin/sh\necho $$ >{started}\nexec sleep 60\n")
    vllm.chmod(0o755)
    command = [sys.executable, "-c", BESIDE, tmp_path / "python", "read", folder]
    command += ["--question", "?", "--model", tiny, "--out", out]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (
            started.exists() and started.read_text().endswith("\n")
        ):
            time.sleep(0.05)
        server = psutil.Process(int(started.read_text()))
        assert server.is_running()
        process.kill()
    server.wait(10)  # raises TimeoutExpired if it still runs


@pytest.mark.parametrize("failure", [429, 503, BREAK], ids=["429", "503", "broken"])
def test_a_failure_that_passes_is_not_seen(server, folder, out, failure):
    server.failures = [failure] * 5
    assert run(server, folder / "report.pdf", out) == 0
    assert [r["answer"] for r in records(out)] == ["1536x2048"] * 3
    assert len(server.requests) == 3 + 5


@pytest.fixture
def no_patience(monkeypatch):
    """As after all retries."""
    monkeypatch.setattr(read, "RETRIES", 1)


@pytest.mark.parametrize("failure", [429, 503, 401, 404])
def test_a_server_that_does_not_recover_ends_the_run(
    server, folder, out, capsys, no_patience, failure
):
    # Only the first request, the trial, is answered.
    server.answer = lambda request: (failure, "not now") if server.requests else ""
    assert run(server, folder / "report.pdf", out) == 2
    assert f"nemotron-vl: The server answered {failure}: not now" in (
        capsys.readouterr().err
    )
    assert records(out) == []
    server.answer = lambda request: "yes"
    assert run(server, folder, out) == 1
    assert places(out) == ALL


def test_a_server_that_dies_ends_the_run(folder, out, capsys, no_patience, monkeypatch):
    monkeypatch.setattr(page_reading, "_RETRIES_AT_START", 0)
    with fake_server() as server:
        url = server.url
    for pages in (folder / "report.pdf", folder / "photo.png"):
        server.url = url
        assert run(server, pages, out) == 2
        assert (
            f"nemotron-vl: No server answers at {url}/v1/: " in capsys.readouterr().err
        )
    assert records(out) == []


def test_a_page_that_the_server_refuses_does_not_stop_the_others(
    server, folder, out, no_patience
):
    def answer(request):
        image = image_of(request)
        if image and image.size == (40, 30):
            return 400, "The image cannot be read: it is blue."
        return (500, "a bug") if image and image.size == (60, 80) else "yes"

    server.answer = answer
    assert run(server, folder, out) == 1
    errors = {r["file"].rpartition("/")[2]: r.get("error") for r in records(out)}
    assert errors["photo.png"] == (
        "The server answered 400: The image cannot be read: it is blue."
    )
    assert errors["scan.tif"] == "The server answered 500: a bug"
    assert errors["report.pdf"] is None
    assert places(out) == ALL


def test_a_page_at_which_the_connection_breaks_does_not_stop_the_others(
    server, folder, out, no_patience
):
    def answer(request):
        image = image_of(request)
        return (BREAK, "") if image and image.size == (40, 30) else "yes"

    server.answer = answer
    assert run(server, folder, out) == 1
    errors = {r["file"].rpartition("/")[2]: r.get("error") for r in records(out)}
    assert errors["photo.png"].startswith("The connection broke in all attempts: ")
    assert places(out) == ALL


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_page_that_a_proxy_gives_up_does_not_stop_the_others(
    server, folder, out, no_patience, status
):
    def answer(request):
        image = image_of(request)
        return (status, "gone") if image and image.size == (40, 30) else "yes"

    server.answer = answer
    assert run(server, folder, out, "--at-once", "1") == 1
    errors = {r["file"].rpartition("/")[2]: r.get("error") for r in records(out)}
    assert errors["photo.png"] == f"The server answered {status}: gone"
    assert places(out) == ALL


def test_a_server_that_is_busy_at_the_start_is_waited_for(server, folder, out):
    server.busy = 6
    assert run(server, folder / "photo.png", out) == 0


@pytest.mark.parametrize("choices", [None, [], [{"index": 0, "message": {}}]])
def test_a_server_that_sends_no_answer_is_a_page_error(server, folder, out, choices):
    respond = server.respond

    def without(request):
        status, body = respond(request)
        return status, body | {"choices": choices}

    server.respond = without
    assert run(server, folder / "photo.png", out) == 1
    assert records(out)[0]["error"] == "The server sent no answer."


def read_four_at_once(server: FakeServer, pages, written: list[dict]) -> None:
    """Ask about pages and append their records as they come."""
    server.answer = lambda request: "yes"

    async def read_all():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        async for record in page_reading.read_answers(
            client, "fake", Question("?", None, 9), pages, at_once=4, timeout=60
        ):
            written.append(record)

    asyncio.run(read_all())


def test_answers_are_written_while_a_page_is_drawn(server):
    """A kill must not lose them."""
    written = []

    def pages():
        yield Page("a.pdf", 1, b"", "image/png")
        for _ in range(100):
            if written:
                break
            time.sleep(0.05)
        yield Page("a.pdf", 2, b"", "image/png", error=None if written else "late")

    read_four_at_once(server, pages(), written)
    assert [r.get("error") for r in written] == [None, None]


def test_a_page_that_takes_long_does_not_hold_a_stop(server, folder, out):
    (folder / "slow.pdf").write_bytes(slow_pdf())
    command = [sys.executable, "-m", main.__module__, "read", folder / "photo.png"]
    command += [
        folder / "slow.pdf",
        "--question",
        "?",
        "--url",
        server.url,
        "--out",
        out,
    ]
    stop_by_hand(command, lambda: out.exists() and out.read_text())


def test_a_document_has_one_name(server, folder, out, monkeypatch):
    assert run(server, folder / "photo.png", out) == 0
    monkeypatch.chdir(folder)
    assert run(server, Path("photo.png"), out) == 0
    assert run(server, Path("../folder/photo.png"), out) == 0
    assert places(out) == [("photo.png", 1)]


def test_errors_of_other_documents_stay(server, folder, out):
    assert run(server, folder, out) == 1
    assert run(server, folder / "locked.pdf", out, "--retry-errors") == 1
    assert places(out) == ALL


def test_a_proxy_is_not_asked_for_this_machine(server, folder, out, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(server, folder / "photo.png", out) == 0


def test_an_address_that_is_none(server, folder, out, capsys):
    server.url = "http://localhost:80x"
    assert run(server, folder / "photo.png", out) == 2
    assert "80x" in capsys.readouterr().err


def test_an_answer_that_takes_too_long_is_an_error(server, folder, out, no_patience):
    def answer(request):
        time.sleep(1.5 if image_of(request) else 0)
        return "late"

    server.answer = answer
    assert run(server, folder / "photo.png", out, "--timeout", "1") == 1
    assert records(out)[0]["error"] == "No answer came within 1 s."


def test_requests_and_pages_in_memory_are_bounded(server):
    server.delay = 0.02
    taken = []

    def pages():
        for number in range(1, 41):
            taken.append(number)
            # Four are asked about, or answered and not yet written.
            assert number <= len(written) + 4
            yield Page("a.pdf", number, b"", "image/png")

    written = []

    read_four_at_once(server, pages(), written)
    assert len(taken) == len(written) == 40
    assert server.most_at_once == 4


SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}, "currency": {"enum": ["EUR", "USD"]}},
    "required": ["total"],
}


@pytest.fixture
def schema(tmp_path):
    file = tmp_path / "invoice.json"
    file.write_text(json.dumps(SCHEMA))
    return str(file)


def test_a_schema_is_enforced_and_its_data_recorded(server, folder, out, schema):
    server.answer = lambda request: '{"total": 3.5}'
    assert run(server, folder / "photo.png", out, "--schema", schema) == 0
    (record,) = records(out)
    assert record["answer"] == {"total": 3.5}
    # The server is asked with the schema before any page is sent.
    for request in (*server.trials, *server.requests):
        sent = request["response_format"]
        assert sent["type"] == "json_schema"
        assert sent["json_schema"]["schema"] == SCHEMA
    text = server.requests[0]["messages"][0]["content"][1]["text"]
    assert json.dumps(SCHEMA) in text


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ('{"total": "3"}', "does not follow the schema: $.total: '3' is not of type"),
        ('{"total": 1, "currency": "F"}', "does not follow the schema: $.currency"),
        ('{"total": 3', "The answer is not JSON: "),
        ('{"total": NaN}', "The answer is not JSON: expected value"),
        ('{"total": 1e999}', "Out of range float values are not JSON compliant"),
        ("[" * 100_000, "The answer is not JSON: recursion limit exceeded"),
    ],
)
def test_an_answer_that_breaks_the_schema_is_an_error(
    server, folder, out, schema, answer, cause
):
    server.answer = lambda request: answer
    assert run(server, folder / "photo.png", out, "--schema", schema) == 1
    (record,) = records(out)
    assert cause in record["error"]
    assert record["answer"] == answer


def test_a_number_that_may_be_cut_is_an_error(server, folder, out, schema):
    respond = server.respond

    def cut(request):
        status, body = respond(request)
        body["choices"][0]["finish_reason"] = "length"
        return status, body

    server.respond, server.answer = cut, lambda request: '{"total": 12}'
    assert run(server, folder / "photo.png", out, "--schema", schema) == 1
    assert records(out)[0]["error"] == (
        "The answer may not be complete. It was cut after 2048 tokens."
    )


def test_a_schema_that_refers_to_nothing_is_refused(server, folder, out, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"properties": {"a": {"$ref": "#/$defs/none"}}}))
    assert run(server, folder, out, "--schema", str(file)) == 2
    file.write_text(json.dumps({"$defs": {"x": {}}, "items": {"$ref": "#/$defs/x"}}))
    assert run(server, folder / "photo.png", out, "--schema", str(file)) == 1
    file.write_text(json.dumps({"$id": "http://a/b", "$ref": "c"}))
    out.unlink()
    server.answer = lambda request: "[]"
    assert run(server, folder / "photo.png", out, "--schema", str(file)) == 1
    assert "refers to what it does not have: " in records(out)[0]["error"]


def test_a_refused_schema_stops_before_the_first_page(
    server, folder, out, schema, capsys
):
    server.answer = lambda request: (400, "The grammar is not supported.")
    assert run(server, folder, out, "--schema", schema) == 2
    assert (
        "nemotron-vl: The server refuses requests: 400: The grammar is not supported."
        in capsys.readouterr().err
    )
    assert server.requests == [] and records(out) == []


def test_a_server_of_another_kind_is_named(server, folder, out, capsys):
    server.models = []
    assert run(server, folder, out) == 2
    assert "has no model or is no server of OpenAI's API" in capsys.readouterr().err
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website) as website:
        threading.Thread(target=website.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{website.server_port}"
        assert run(server, folder, out) == 2
        website.shutdown()
    assert "has no model or is no server of OpenAI's API" in capsys.readouterr().err


class Website(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, *args: object) -> None:
        pass


def test_another_question_needs_another_file(server, folder, out, capsys):
    run(server, folder, out)
    before = out.read_text()
    where = ("--url", server.url, "--out", str(out))
    assert main(["read", str(folder), "--question", "Other?", *where]) == 2
    assert "has answers to another question or schema" in capsys.readouterr().err
    assert out.read_text() == before


def test_a_system_message_precedes_each_question(server, folder, out, capsys):
    run(server, folder, out, "--system", "Be brief.")
    batch = out.with_name("requests.jsonl")
    asked = ["--question", "?", "--model", "m", "--batch", str(batch)]
    main(["read", str(folder), *asked, "--system", "Be brief."])
    batched = [json.loads(line)["body"] for line in batch.read_text().splitlines()]
    assert len(batched) == len(server.requests) == 6 and server.trials
    for request in (*server.requests, *server.trials, *batched):
        first, second = request["messages"]
        assert first == {"role": "system", "content": "Be brief."}
        assert second["role"] == "user"
    assert run(server, folder, out) == 2
    assert "to another question" in capsys.readouterr().err


def test_files_of_earlier_versions_go_on():
    """Digests that version 0.1.0 wrote."""
    assert Question("Read it.", None, 9).digest == "74ef3ae3fbd0"
    assert Question(None, {"type": "object"}, 9).digest == "469863558364"
    assert Question("Read it.", None, 9, system="").digest != "74ef3ae3fbd0"


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


def test_a_name_that_is_not_utf_8(folder, tmp_path):
    odd = os.fsencode(folder) + b"/\xff.png"
    os.rename(folder / "photo.png", odd)
    batch = tmp_path / "requests.jsonl"
    asked = ["read", os.fsdecode(odd), "--question", "?", "--model", "m"]
    assert main([*asked, "--batch", str(batch)]) == 0
    assert json.loads(batch.read_text())["custom_id"].endswith(r"\udcff.png#1")
    assert "\\\\udcff" in batch.read_text()  # and no half of a surrogate pair


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
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    captured = capsys.readouterr()
    assert "requests: 6, errors: 2" in captured.out
    assert "locked.pdf: The PDF is encrypted" in captured.err
    assert not batch.with_name("requests.jsonl.part").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "o"], "Give --question, --schema, or both."),
        (["--out", "o", "--question", "?"], "Give --url of a server, or --model"),
        (["--batch", "b", "--question", "?"], "--batch needs --model"),
        (["--out", "o", "--schema", "nowhere.json"], "nowhere.json"),
        (["--out", "o", "--schema", "{folder}/notes"], "notes is not JSON: "),
        (["--out", "o", "--schema", "{folder}/odd.json"], "$.type: 'nothing' is not"),
        (["--out", "o", "--question", "?", "{folder}/none"], "none does not exist."),
        (["--out", "o", "--question", "?", "--url", "u", "{folder}/empty"], "no PDFs"),
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
    real = read.find_spec
    monkeypatch.setattr(
        read, "find_spec", lambda name: None if name == "pypdfium2" else real(name)
    )
    assert main(["read", str(folder), "--question", "?", "--out", "o"]) == 2
    assert capsys.readouterr().err == (
        "nemotron-vl: `nemotron-vl read` needs more packages: pip install pypdfium2 "
        '(the extra "documents" of this package)\n'
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
