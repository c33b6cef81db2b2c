"""The process of `nemotron-vl read`: what it shows and holds, and how it ends."""

import asyncio
import contextlib
import functools
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
from collections.abc import Callable

import openai
import psutil

from nemotron_vl.documents import reading as page_reading
from nemotron_vl.documents.pages import Page
from nemotron_vl.documents.requests import Question
from nemotron_vl.main import main
from support.documents import pdf, slow_pdf, solid
from support.fake_server import FakeServer
from support.read_command import ALL, arguments, places, records


def test_killed_at_random_moments_it_loses_nothing(server, tmp_path, out):
    (tmp_path / "long.pdf").write_bytes(pdf([solid("red")] * 150))
    server.delay = 0.03
    command = [sys.executable, "-m", main.__module__]
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
    assert main(arguments(server, folder, out, "--question", "?")) == 1
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


def read_four_at_once(
    server: FakeServer, pages, written: list[dict], answer=lambda request: "yes"
) -> None:
    """Ask about pages and append their records as they come."""
    server.answer = answer

    async def read_all():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
        served = page_reading.Served("fake", None, Question("?", None, 9))
        groups = ((page,) for page in pages)
        async for record in page_reading.read_answers(
            client, served, groups, at_once=4, timeout=60
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
    command += [folder / "slow.pdf", "--question", "?"]
    command += ["--url", server.url, "--out", out]
    stop_by_hand(command, lambda: out.exists() and out.read_text())


def test_requests_and_pages_in_memory_are_bounded(server):
    four = threading.Barrier(4, timeout=30)

    def answer(request: dict) -> str:
        four.wait()  # for three others
        return "yes"

    taken = []

    def pages():
        for number in range(1, 41):
            taken.append(number)
            # Four are asked about, or answered and not yet written.
            assert number <= len(written) + 4
            yield Page("a.pdf", number, b"", "image/png")

    written = []

    read_four_at_once(server, pages(), written, answer)
    assert len(taken) == len(written) == 40
    assert server.most_at_once == 4
