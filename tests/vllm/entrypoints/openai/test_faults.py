"""What a server does when something around it fails.

docs/troubleshooting.md lists the outcomes. The server runs with cache folders that
it cannot write to and a hub that it cannot reach.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from PIL import Image

from drawn_text import make_question
from nemotron_vl.server import serving_process
from nemotron_vl.verify.reference import Reference
from support.chat import (
    EXACT,
    EXIT_STATUS,
    SERVER_OPTIONS,
    chat_request,
    content,
    png_part,
    reference_text,
)
from support.hostile import memory_of
from support.served import sums_at
from typefaces import PILLOW_FONT

TOKENS = 12
MANY = 960  # tokens: close to the context length, and seconds of work


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults") / "log.txt"


@pytest.fixture(scope="module")
def server(tiny, log):
    """The process of a server and its URL."""
    env = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": "/proc/nowhere",
        "VLLM_CACHE_ROOT": "/proc/nowhere",
        "XDG_CACHE_HOME": "/proc/nowhere",
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # freed memory goes back at once
    }
    options = [*SERVER_OPTIONS, EXACT, EXIT_STATUS]
    # No fork: the hub's variables are read at import, and its exit status is tested.
    with serving_process(tiny, *options, log=log, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def job(tiny) -> tuple[dict, str]:
    """A request and its expected answer."""
    reference = Reference.load(tiny)
    question = make_question(random.Random(8), PILLOW_FONT, reference, "read")
    request = chat_request(question, tokens=TOKENS)
    return request, reference_text(reference, question, tokens=TOKENS)


CHAT = "/v1/chat/completions"


def answer(url: str, request: dict) -> str:
    return content(httpx.post(url + CHAT, json=request, timeout=60))


def metric(url: str, name: str) -> int:
    """The value of a metric of the server."""
    (value,) = sums_at(url, f"vllm:{name}", "engine").values()
    return value


def wait_until_idle(url: str) -> None:
    end = time.monotonic() + 30
    while metric(url, "num_requests_running"):
        assert time.monotonic() < end
        time.sleep(0.2)


def leave_early(url: str, request: dict, after: float = 0.3) -> None:
    """Send a request and disconnect before the answer is complete.

    `after` is in seconds, for a request that is not streamed.
    """
    with contextlib.closing(HTTPConnection(url.removeprefix("http://"))) as asked:
        kind = {"Content-Type": "application/json"}
        asked.request("POST", CHAT, json.dumps(request), kind)
        if request["stream"]:
            assert asked.getresponse().readline().startswith(b"data:")
        else:
            time.sleep(after)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_is_aborted_when_its_client_disconnects(server, job, streamed):
    _, url = server
    made, end = 0, time.monotonic() + 90
    # On a busy machine this process may get no core until the answer is complete, for
    # several times in a row. It may also disconnect too soon.
    while not 0 < made < MANY and time.monotonic() < end:
        wait_until_idle(url)
        before = metric(url, "generation_tokens_total")
        leave_early(url, job[0] | {"max_tokens": MANY, "stream": streamed})
        wait_until_idle(url)
        made = metric(url, "generation_tokens_total") - before
    assert 0 < made < MANY
    assert answer(url, job[0]) == job[1]


def test_a_client_may_leave_while_its_image_is_processed(server, job, log):
    """At each stage: decoding takes about a second, resizing another one."""
    process, url = server
    image = png_part(Image.new("L", (12_000, 12_000)))
    (message,) = job[0]["messages"]
    large = {"role": "user", "content": [image, *message["content"][1:]]}
    request = job[0] | {"messages": [large], "stream": False}
    assert answer(url, job[0]) == job[1]
    before = len(log.read_text())
    with memory_of(process.pid) as used:
        for after in (0.05, 0.5, 1, 1.5, 2):
            leave_early(url, request, after)
            assert answer(url, job[0]) == job[1]
        wait_until_idle(url)
        # Threads of vLLM still work for the clients that have left.
        end = time.monotonic() + 60
        while used.now() > 200 and time.monotonic() < end:
            time.sleep(1)
        assert answer(url, job[0]) == job[1]
    assert used.peak > 100  # the large image was decoded
    assert used.left < 200
    assert "Traceback" not in log.read_text()[before:]


def test_requests_are_answered_without_caches_or_a_hub(server, job):
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


def kill_worker(log: Path) -> None:
    """End the process that has the model. Each process names itself in the log."""
    (worker,) = {*re.findall(r"\(Worker pid=(\d+)\)", log.read_text())}
    os.kill(int(worker), signal.SIGKILL)


def test_a_killed_worker_ends_the_server_and_the_log_says_why(server, job, log):
    """This test must be the last one with this server, because the server exits."""
    process, url = server
    kill_worker(log)
    statuses = []
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            statuses.append(httpx.post(url + CHAT, json=job[0]).status_code)
        except httpx.HTTPError:
            continue  # the server has exited
    assert process.poll() == 1
    assert set(statuses) <= {500, 503}
    assert "died unexpectedly" in log.read_text()
    assert "Exiting with status 1, for the engine has died." in log.read_text()


@pytest.mark.releases
def test_vllm_itself_exits_with_a_failure_if_it_has_two_api_servers(tiny, tmp_path):
    options = [*SERVER_OPTIONS, "--api-server-count=2"]
    log = tmp_path / "log.txt"
    with serving_process(tiny, *options, log=log) as (process, _):
        kill_worker(log)
        assert process.wait(60) == 1
