"""`nemotron-vl probe` tells an engine that hangs from one that is busy."""

import http.server
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nemotron_vl.main import main
from nemotron_vl.server import free_port, serving_process
from support.chat import ONE_WORKER, SERVER_OPTIONS
from support.servers import forked_servers

KEY = "a key"


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory) -> Iterator[tuple[str, int]]:
    """URL of a server that answers one request at a time, and its engine's process."""
    log: Path = tmp_path_factory.mktemp("probe") / "log.txt"
    options = [*SERVER_OPTIONS, ONE_WORKER, "--max-num-seqs=1"]
    env = {"VLLM_API_KEY": KEY}
    with (
        forked_servers(),
        serving_process(tiny, *options, log=log, env=env) as (_, url),
    ):
        (engine,) = {*re.findall(r"\(EngineCore\S* pid=(\d+)\)", log.read_text())}
        yield url, int(engine)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)


def probe(url: str, seconds: int, capsys) -> tuple[int, str]:
    status = main(["probe", url, "--seconds", str(seconds)])
    return status, capsys.readouterr().out


def test_an_engine_that_answers(server, capsys):
    assert probe(server[0] + "/", 20, capsys) == (0, "The engine answers.\n")


class Busy(http.server.BaseHTTPRequestHandler):
    """A server whose engine makes tokens, but none for this client in its time."""

    made = itertools.count(1000, 64)

    def do_GET(self) -> None:
        body = '{"data": [{"id": "a model"}]}'
        if self.path == "/metrics":
            body = f'vllm:prompt_tokens_total{{engine="0"}} {next(self.made)}.0\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        time.sleep(3)

    def log_message(self, *_) -> None:
        pass


def test_a_busy_engine_lives(capsys):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = probe(f"http://127.0.0.1:{server.server_port}", 1, capsys)
        server.shutdown()
    assert found == (0, "The engine is busy: 64 tokens for others in 1 s.\n")


def test_an_engine_that_hangs(server, capsys):
    url, engine = server
    os.kill(engine, signal.SIGSTOP)
    try:
        assert httpx.get(f"{url}/health").status_code == 200
        found = probe(url, 2, capsys)
    finally:
        os.kill(engine, signal.SIGCONT)
    assert found == (1, "The engine made no token within 2 s.\n")
    assert probe(url, 20, capsys)[0] == 0


def test_no_server(capsys):
    status, said = probe(f"http://127.0.0.1:{free_port()}", 2, capsys)
    assert status == 1 and said.startswith("The server does not answer: ")


def test_a_wrong_key_says_nothing_about_the_engine(server, capsys, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "another")
    status, said = probe(server[0], 2, capsys)
    assert (status, said) == (2, "The server answers with status 401: Unauthorized\n")
