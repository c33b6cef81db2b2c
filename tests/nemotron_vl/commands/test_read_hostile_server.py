"""`nemotron-vl read` against a server that is hostile, broken or something else."""

import gzip
import itertools
import json
import os
import pty
import subprocess
import sys
import time

import pytest

from nemotron_vl.main import main
from support.documents import pdf, solid
from support.fake_server import FakeServer, Sent, fake_server, image_of
from support.hostile import bounded_memory

BAD = (40, 30)  # the size of the page that is answered badly
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server(server):
    server.answer = lambda request: "yes"
    return server


@pytest.fixture
def folder(tmp_path):
    """A page that is answered badly, and others after it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    solid("blue", BAD).save(folder / "a.png")
    (folder / "b.pdf").write_bytes(pdf([solid("red")] * 2))
    return folder


def read(server: FakeServer, folder, *options: str) -> tuple[int, dict]:
    """The status, and the records by file and page."""
    out = folder.parent / "answers.jsonl"
    command = ["read", str(folder), "--question", "?", "--url", server.url]
    status = main([*command, "--out", str(out), "--at-once", "1", *options])
    lines = out.read_text().splitlines()[1:] if out.exists() else []
    records = map(json.loads, lines)
    return status, {(r["file"].rpartition("/")[2], r["page"]): r for r in records}


def bad_page(request) -> bool:
    image = image_of(request) if request else None
    return bool(image and image.size == BAD)


def answer(**changes) -> bytes:
    """An answer of OpenAI's API in which something is changed."""
    message = {"role": "assistant", "content": "yes"}
    whole = {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    return json.dumps(whole | changes).encode()


def choice(**changes) -> bytes:
    message = {"role": "assistant", "content": "yes"}
    return answer(choices=[{"finish_reason": "stop", "message": message} | changes])


def usage(value: object) -> bytes:
    return answer(usage=value)


COUNTS = {"prompt_tokens": 1, "completion_tokens": 1}
DEEP = b"[" * 200_000
MALFORMED = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"yes"',
    "a number": b"17",
    "HTML": b"<html>Welcome</html>",
    "no UTF-8": b'{"choices": "\xff\xfe"}',
    "half": answer()[:-9],
    "deep": b'{"choices": ' + DEEP + b"]" * 200_000 + b"}",
    "deep and not read": b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"," + answer()[1:],
    "a lone surrogate": choice(message={"content": "\ud800"}),
    "choices are a text": answer(choices="yes"),
    "choices are an object": answer(choices={"0": 1}),
    "a choice is null": answer(choices=[None]),
    "a choice is a number": answer(choices=[7]),
    "no message": answer(choices=[{}]),
    "a message is a list": choice(message=["yes"]),
    "content is a list": choice(message={"content": [{"text": "yes"}]}),
    "content is a number": choice(message={"content": 7}),
    "a reason is an object": choice(finish_reason={}),
    "a long reason": choice(finish_reason="stop" * 10_000),
    "usage is a list": usage([1, 2]),
    "usage is a number": usage(3),
    "usage is empty": usage({}),
    "tokens are a text": usage(COUNTS | {"prompt_tokens": "many"}),
    "tokens are null": usage(COUNTS | {"prompt_tokens": None}),
    "tokens are negative": usage(COUNTS | {"completion_tokens": -1}),
    "5,000 digits": usage(COUNTS).replace(b": 1,", b": " + b"9" * 5000 + b","),
    "too many tokens": usage(COUNTS | {"prompt_tokens": 10**30}),
    "infinitely many": usage(COUNTS).replace(b": 1,", b": 1e999,"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_the_record_of_its_page(server, folder, name):
    sent = Sent(MALFORMED[name], headers=JSON)
    server.sent = lambda request: sent if bad_page(request) else None
    status, records = read(server, folder)
    assert status == 1
    error = records.pop(("a.png", 1))["error"]
    assert error.startswith("The server's answer cannot be read: ") or (
        error == "The server sent no answer."
    )
    assert len(error) < 1500
    assert [r.get("answer") for r in records.values()] == ["yes"] * 2
    # The file of records is read again, and nothing is asked twice.
    before = len(server.requests)
    assert read(server, folder)[0] == 1
    assert len(server.requests) == before


def test_unknown_keys_and_reasons_are_no_errors(server, folder):
    sent = Sent(answer(extra={"x": [1e999]}, usage=None), headers=JSON)
    server.sent = lambda request: sent if bad_page(request) else None
    status, records = read(server, folder)
    assert status == 0 and records["a.png", 1]["answer"] == "yes"
    assert "tokens" not in records["a.png", 1]


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "text", [deep(900), deep(100_000), "9" * 5000, "1e999", "NaN", '"\\ud800"', ""]
)
def test_data_that_cannot_be_written_again_is_an_error(server, folder, text):
    server.answer = lambda request: text if bad_page(request) else "[]"
    schema = folder.parent / "schema.json"
    schema.write_text("{}")
    status, records = read(server, folder, "--schema", str(schema))
    assert status == 1
    assert records["a.png", 1]["error"].startswith("The answer is not JSON: ")
    assert records["b.pdf", 2]["answer"] == []
    assert read(server, folder, "--schema", str(schema))[0] == 1


# Sizes


ENDLESS = itertools.repeat(b" " * (1 << 20), 2000)
BOMB = gzip.compress(b"[" * (1 << 28), 1)  # 268 MB of 1.2 MB
LARGE = {
    "endless": Sent(ENDLESS, headers=JSON),
    "an endless error": Sent(ENDLESS, 400),
    "a large text": Sent(choice(message={"content": "a" * (1 << 26)}), headers=JSON),
    "compressed": Sent(BOMB, headers=JSON | {"Content-Encoding": "gzip"}),
    "a compressed error": Sent(BOMB, 400, {"Content-Encoding": "gzip"}),
    "compressed twice": Sent(
        gzip.compress(BOMB), headers=JSON | {"Content-Encoding": "gzip, gzip"}
    ),
    # Python decodes this "character set" by unpacking it.
    "compressed characters": Sent(
        b"x" * 100, 400, {"Content-Type": "text/plain; charset=zlib"}
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_answers_take_no_memory(server, folder, name):
    server.sent = lambda request: LARGE[name] if bad_page(request) else None
    read(server, folder / "b.pdf")  # imports
    with bounded_memory(150):
        status, records = read(server, folder)
    assert status == 1 and len(records) == 3
    assert len(json.dumps(records["a.png", 1])) < 3000
    error = records["a.png", 1]["error"]
    if LARGE[name].status == 400:
        assert error.startswith("The server answered 400: ")
    elif "Content-Encoding" in LARGE[name].headers:
        assert error == "The server's answer is compressed."
    else:
        assert error == "The server's answer has more than 4 MiB."


def test_a_large_answer_to_the_first_request_is_refused(server, folder, capsys):
    server.sent = lambda request: LARGE["compressed"] if request is None else None
    with bounded_memory(150):
        assert read(server, folder) == (2, {})
    assert "The server's answer is compressed." in capsys.readouterr().err
    assert server.requests == server.trials == []


def test_a_start_that_takes_too_long_ends(server, folder, capsys):
    def slowly():
        for _ in range(300):
            yield b" "
            time.sleep(0.1)

    server.sent = lambda request: Sent(slowly()) if request is None else None
    assert read(server, folder, "--timeout", "1") == (2, {})
    assert "did not answer within 1 s" in capsys.readouterr().err


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("when", ["the page", "a trial", "the models"])
def test_no_page_goes_to_another_host(server, folder, status, when, capsys):
    with fake_server() as other:
        moved = Sent(b"", status, {"Location": f"{other.url}/v1/chat/completions"})

        def redirect(request):
            if request is None:
                return moved if when == "the models" else None
            if image_of(request) is None:
                return moved if when == "a trial" else None
            return moved if when == "the page" and bad_page(request) else None

        server.sent = redirect
        done, records = read(server, folder)
        assert other.requests == other.trials == []
    told = f"{status}: it redirects to {other.url}/v1/chat/completions"
    if when == "the page":
        assert done == 1 and told in records["a.png", 1]["error"]
        assert records["b.pdf", 2]["answer"] == "yes"
    else:
        assert done == 2 and not records and not server.requests
        assert told in capsys.readouterr().err


# Terminals

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x08\r\x7f\u202e\n\nnemotron-vl: all is well"


def shown(*arguments: str) -> bytes:
    """What a terminal gets of a command."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", main.__module__, *arguments]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        try:
            while part := os.read(ours, 4096):
                output += part
        except OSError:  # the end
            pass
    os.close(ours)
    assert process.returncode in (1, 2)
    return output


@pytest.mark.parametrize("when", ["the page", "the start"])
def test_a_terminal_gets_no_control_characters_of_a_server(server, folder, when):
    def refuse(request):
        if bad_page(request) or (when == "the start" and image_of(request) is None):
            return 400, ESCAPES
        return "yes"

    server.answer = refuse
    out = folder.parent / "answers.jsonl"
    output = shown(
        *("read", str(folder), "--question", "?", "--url", server.url),
        *("--out", str(out)),
    )
    assert rb"\u001b]0;title\u0007\u001b[2J\u009b31m\u0008\u000d\u007f\u202e" in output
    assert b"title\x07" not in output and b"\x1b[2J" not in output
    assert "\x9b".encode() not in output and "\u202e".encode() not in output
    if when == "the page":  # one line, whatever the server says
        assert rb"\u000a\u000anemotron-vl: all is well" in output
