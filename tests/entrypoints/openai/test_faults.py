"""What a server does when something around it fails; the outcomes are in
docs/troubleshooting.md.

It runs with folders for caches that cannot be written and a hub that cannot be
reached.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from asking import EXACT, SERVER_OPTIONS, chat_request, content, reference_text
from drawn_text import PILLOW_FONT, make_question
from reference.nemotron_vl import Reference
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.server import serving_process

TOKENS = 12


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults") / "log.txt"


@pytest.fixture(scope="module")
def server(tiny, log):
    """Process and URL."""
    env = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": "/proc/nowhere",
        "VLLM_CACHE_ROOT": "/proc/nowhere",
        "XDG_CACHE_HOME": "/proc/nowhere",
    }
    with serving_process(tiny, *SERVER_OPTIONS, EXACT, log=log, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def job(tiny) -> tuple[dict, str]:
    """A request and its answer."""
    reference = Reference.load(tiny)
    question = make_question(random.Random(8), PILLOW_FONT, reference, "read")
    request = chat_request(question, tokens=TOKENS)
    return request, reference_text(reference, question, tokens=TOKENS)


def answer(url: str, request: dict) -> str:
    return content(httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60))


def test_no_caches_and_no_hub(server, job):
    request, expected = job
    assert answer(server[1], request) == expected


def test_full_shared_memory_is_named_at_start(tiny, tmp_path):
    fill = "mount -t tmpfs -o size=64k tmpfs /dev/shm && "
    fill += 'head -c 64k /dev/zero > /dev/shm/full; exec "$@"'
    command = ["unshare", "--mount", "bash", "-c", fill, "bash"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("a full /dev/shm needs root and unshare")
    log = tmp_path / "log.txt"
    with (
        pytest.raises(RuntimeError, match="ended with status"),
        serving_process(tiny, *SERVER_OPTIONS, log=log, prefix=command),
    ):
        pass
    assert "Insufficient space in /dev/shm" in log.read_text()


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
    # vLLM 0.32 ends with status 0: a supervisor must not ask for it.
    assert process.poll() == 0
    assert set(statuses) <= {500, 503}
    assert "died unexpectedly" in log.read_text()
