"""What a server does when something around it fails; the outcomes are in
docs/troubleshooting.md.

It runs with a full /dev/shm, folders for caches that cannot be written and a hub
that cannot be reached.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from asking import chat_request, content, reference_text
from drawn_text import PILLOW_FONT, make_question
from reference.nemotron_vl import Reference
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.server import free_port, running

TOKENS = 12
VLLM = Path(sys.executable).with_name("vllm")


def can_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults") / "log.txt"


@pytest.fixture(scope="module")
def server(tiny, log):
    """Process and URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(str(VLLM), "serve", str(tiny), "--host=127.0.0.1", f"--port={port}"),
        "--served-model-name=tiny",
        "--dtype=float32",
        "--enforce-eager",
        "--max-model-len=1024",
        "--max-num-seqs=2",
        '--mm-processor-kwargs={"resize": "exact"}',
    ]
    if can_mount():
        mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm && head -c 64k /dev/zero"
        script = f'{mount} > /dev/shm/full; exec "$@"'
        command = ["unshare", "--mount", "bash", "-c", script, "bash", *command]
    env = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": "/proc/nowhere",
        "VLLM_CACHE_ROOT": "/proc/nowhere",
        "XDG_CACHE_HOME": "/proc/nowhere",
    }
    with running(command, url=url, log=log, env=env) as process:
        yield process, url


@pytest.fixture(scope="module")
def job(tiny) -> tuple[dict, str]:
    """A request and its answer."""
    reference = Reference.load(tiny)
    question = make_question(random.Random(8), PILLOW_FONT, reference, "read")
    request = chat_request(question, tokens=TOKENS)
    return request, reference_text(reference, question, tokens=TOKENS)


def answer(url: str, request: dict) -> str:
    return content(httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60))


def unfinished(url: str) -> float:
    """Requests that run or wait."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def wait_until_idle(url: str) -> None:
    deadline = time.monotonic() + 10
    while unfinished(url):
        assert time.monotonic() < deadline, "an abandoned request still runs"
        time.sleep(0.1)


def test_full_shared_memory_no_caches_and_no_hub(server, job):
    if not can_mount():
        pytest.skip("a full /dev/shm needs root and unshare; the rest was tried")
    request, expected = job
    assert answer(server[1], request) == expected


def test_clients_that_go_away_leave_nothing_behind(server, job):
    _, url = server
    request, expected = job
    long = {**request, "max_tokens": 900, "stream": True}
    address = f"{url}/v1/chat/completions"
    for _ in range(3):
        with httpx.stream("POST", address, json=long, timeout=60) as response:
            next(response.iter_lines())
            assert unfinished(url) == 1
        wait_until_idle(url)
    assert answer(url, request) == expected


def test_cancelled_requests_are_not_finished(server, job):
    _, url = server
    request, expected = job
    long = {**request, "max_tokens": 900}
    for _ in range(3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=long, timeout=0.1)
        wait_until_idle(url)
    assert answer(url, request) == expected


def processes(leader: int) -> dict[int, str]:
    """Processes of a group and their names."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.getpgid(int(folder.name)) == leader:
                found[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
    return found


def test_a_killed_worker_ends_the_server_which_says_why(server, job, log):
    """The last one: it ends the server."""
    process, url = server
    (worker,) = [p for p, name in processes(process.pid).items() if "Worker" in name]
    os.kill(worker, signal.SIGKILL)
    statuses = []
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            address = f"{url}/v1/chat/completions"
            statuses.append(httpx.post(address, json=job[0], timeout=30).status_code)
        except httpx.HTTPError:
            continue  # it has gone
    assert process.poll() not in (None, 0)  # so that a supervisor starts it again
    assert not statuses or set(statuses) <= {500, 503}
    assert "died unexpectedly" in log.read_text()
