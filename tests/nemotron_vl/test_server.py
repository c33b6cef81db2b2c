"""A server is stopped: while it starts, while it answers, and at once."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemotron_vl import server
from nemotron_vl.server import free_port, running, serving_process

# A stubborn server with a child, in the place of vLLM. With "healthy" it answers.
SERVER = """
import http.server, signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
if "healthy" in sys.argv:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
print(child.pid, flush=True)
signal.pause()
"""
COMMAND = """
import sys
from nemotron_vl import server
server._STARTING_STOP_SECONDS, server._STOP_SECONDS = map(float, sys.argv[4:6])
command = [sys.executable, "-c", sys.argv[1], sys.argv[2], *sys.argv[6:]]
with server.running(command, url=f"http://127.0.0.1:{sys.argv[2]}", log=sys.argv[3]):
    print("ready", flush=True)
    import time
    time.sleep(60)
"""


@contextlib.contextmanager
def started(log: Path, *kind: str, starting: float = 1, stopping: float = 1):
    """A command that runs the server, once it has started; and the server's child."""
    arguments = [SERVER, str(free_port()), log, str(starting), str(stopping), *kind]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,
    ) as process:
        while not (log.exists() and log.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.05)
        if kind:
            assert process.stdout.readline() == "ready\n"
        yield process, psutil.Process(int(log.read_text()))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", [[], ["healthy"]])
def test_a_stubborn_server_is_killed_with_its_children(tmp_path, kind, sign):
    patience = {"starting": 1, "stopping": 60} if not kind else {"starting": 60}
    with started(tmp_path / "log", *kind, **patience) as (process, child):
        process.send_signal(sign)
        assert process.stderr.readline() == "Stopping the server ...\n"
        start = time.monotonic()
        process.communicate(timeout=20)
        assert 0.5 < time.monotonic() - start < 10
    child.wait(5)  # raises TimeoutExpired if it still runs


@pytest.mark.parametrize("kind", [[], ["healthy"]])
def test_a_second_ctrl_c_kills_at_once(tmp_path, kind):
    with started(tmp_path / "log", *kind, starting=60, stopping=60) as found:
        process, child = found
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "Stopping the server ...\n"
        time.sleep(0.5)
        assert process.poll() is None and child.is_running()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    child.wait(5)


def test_a_server_that_ends_is_named(tmp_path, monkeypatch):
    """Not the command that runs it."""
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\necho no such option\nexit 2\n")
    vllm.chmod(0o755)
    monkeypatch.setattr(server.sys, "executable", str(tmp_path / "python"))
    prefix = [shutil.which("env"), "A=1"]
    options = {"log": tmp_path / "log", "prefix": prefix}
    message = r"^vllm serve ended with status 2; .*\nno such option$"
    with (
        pytest.raises(RuntimeError, match=re.compile(message, re.DOTALL)),
        serving_process("model", **options),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="^false ended with status 1"),
        running(["false"], url="http://127.0.0.1:9", log=os.devnull),
    ):
        pass


FAILED = """
print("(Worker) ERROR [file.py:1] ValueError: Available memory is less than desired.")
print("frames\\n" * 50)
print("RuntimeError: See root cause above.")
raise SystemExit(1)
"""


def test_the_cause_of_a_failed_start_is_shown(tmp_path):
    """It may stand far above the end of the log."""
    command = [sys.executable, "-c", FAILED]
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RuntimeError, match="ended with status 1") as error:  # noqa: SIM117
        with running(command, url=url, log=tmp_path / "log"):
            pass
    lines = str(error.value).splitlines()
    assert lines[1] == "ValueError: Available memory is less than desired."
    assert lines[-1] == "RuntimeError: See root cause above."
