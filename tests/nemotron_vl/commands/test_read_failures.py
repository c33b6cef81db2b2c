"""`nemotron-vl read` when the server fails: it waits, goes on, or ends with a cause."""

import http.server
import threading
import time

import pytest

from nemotron_vl.documents import client as page_client
from nemotron_vl.documents import reading as page_reading
from nemotron_vl.main import main
from support.fake_server import BREAK, fake_server, image_of
from support.read_command import ALL, arguments, places, records


@pytest.mark.parametrize("failure", [429, 503, BREAK], ids=["429", "503", "broken"])
def test_a_failure_that_passes_is_not_seen(server, folder, out, failure):
    server.failures = [failure] * 5
    assert main(arguments(server, folder / "report.pdf", out)) == 0
    assert [r["answer"] for r in records(out)] == ["1536x2048"] * 3
    assert len(server.requests) == 3 + 5


@pytest.fixture
def no_patience(monkeypatch):
    """As after all retries."""
    monkeypatch.setattr(page_client, "retries", lambda wait: 1)


@pytest.mark.parametrize("failure", [429, 503, 401, 404])
def test_a_server_that_does_not_recover_ends_the_run(
    server, folder, out, capsys, no_patience, failure
):
    # Only the first request, the trial, is answered.
    server.answer = lambda request: (failure, "not now") if server.requests else ""
    assert main(arguments(server, folder / "report.pdf", out)) == 2
    assert f"nemotron-vl: The server answered {failure}: not now" in (
        capsys.readouterr().err
    )
    assert records(out) == []
    server.answer = lambda request: "yes"
    assert main(arguments(server, folder, out)) == 1
    assert places(out) == ALL


def test_a_server_that_dies_ends_the_run(folder, out, capsys, no_patience, monkeypatch):
    monkeypatch.setattr(page_reading, "_RETRIES_AT_START", 0)
    with fake_server() as server:
        url = server.url
    for pages in (folder / "report.pdf", folder / "photo.png"):
        server.url = url
        assert main(arguments(server, pages, out)) == 2
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
    assert main(arguments(server, folder, out)) == 1
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
    assert main(arguments(server, folder, out)) == 1
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
    assert main(arguments(server, folder, out, "--at-once", "1")) == 1
    errors = {r["file"].rpartition("/")[2]: r.get("error") for r in records(out)}
    assert errors["photo.png"] == f"The server answered {status}: gone"
    assert places(out) == ALL


def test_a_server_that_is_busy_at_the_start_is_waited_for(server, folder, out):
    server.busy = 6
    assert main(arguments(server, folder / "photo.png", out)) == 0


@pytest.mark.parametrize("choices", [None, [], [{"index": 0, "message": {}}]])
def test_a_server_that_sends_no_answer_is_a_page_error(server, folder, out, choices):
    respond = server.respond

    def without(request):
        status, body = respond(request)
        return status, body | {"choices": choices}

    server.respond = without
    assert main(arguments(server, folder / "photo.png", out)) == 1
    assert records(out)[0]["error"] == "The server sent no answer."


def test_a_proxy_is_not_asked_for_this_machine(server, folder, out, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(arguments(server, folder / "photo.png", out)) == 0


def test_an_address_that_is_none(server, folder, out, capsys):
    server.url = "http://localhost:80x"
    assert main(arguments(server, folder / "photo.png", out)) == 2
    assert "80x" in capsys.readouterr().err


def test_an_answer_that_takes_too_long_is_an_error(server, folder, out, no_patience):
    def answer(request):
        time.sleep(1.5 if image_of(request) else 0)
        return "late"

    server.answer = answer
    assert main(arguments(server, folder / "photo.png", out, "--timeout", "1")) == 1
    assert records(out)[0]["error"] == "No answer came within 1 s."


def test_a_server_of_another_kind_is_named(server, folder, out, capsys):
    server.models = []
    assert main(arguments(server, folder, out)) == 2
    assert "has no model or is no server of OpenAI's API" in capsys.readouterr().err
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website) as website:
        threading.Thread(target=website.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{website.server_port}"
        assert main(arguments(server, folder, out)) == 2
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
