"""The drills of docs/runbook.md, with the embedded checkpoint."""

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from drawn_text import make_question
from nemotron_vl.main import main
from nemotron_vl.server import free_port, running, serving_process
from nemotron_vl.verify.reference import Reference
from support.chat import EXACT, SERVER_OPTIONS, chat_request, content, reference_text
from support.hostile import memory_of
from support.served import BIN, OPTIONS, routing, sums_at
from support.servers import forked_servers
from typefaces import PILLOW_FONT

pytestmark = pytest.mark.releases
ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def job(tiny) -> tuple[dict, str]:
    """A request and its expected answer."""
    reference = Reference.load(tiny)
    question = make_question(random.Random(8), PILLOW_FONT, reference, "read")
    request = chat_request(question, tokens=12)
    return request, reference_text(reference, question, tokens=12)


def answer(url: str, job: tuple[dict, str]) -> bool:
    return content(httpx.post(url + CHAT, json=job[0], timeout=60)) == job[1]


# Upgrade and rollback


def other_release() -> Path:
    """The ``vllm`` of another release that tools/releases has installed."""
    others = [
        path
        for path in sorted(ROOT.glob("build/releases/[0-9]*/venv/bin/vllm"))
        if path.parent != BIN
    ]
    if not others:
        pytest.skip("needs another release of vLLM (make test-releases installs it)")
    return others[0]


def test_an_upgrade_and_a_rollback_behind_the_router(tiny, job, tmp_path):
    """No request fails. Both servers run for a while, each with its release."""
    statuses: Counter[tuple[str, int]] = Counter()
    versions, step, done = set(), ["old"], threading.Event()

    @contextlib.contextmanager
    def release(program: Path, name: str):
        url = f"http://127.0.0.1:{free_port()}"
        command = [str(program), "serve", str(tiny), "--host=127.0.0.1"]
        command += [f"--port={url.rpartition(':')[2]}", "--shutdown-timeout=60"]
        with running([*command, *OPTIONS], url=url, log=tmp_path / name) as process:
            versions.add(httpx.get(f"{url}/version").json()["version"])
            yield process, url

    def move(new: str, process, old: str) -> None:
        """From one server to the other, and end the one that gets no requests."""
        assert httpx.post(f"{router}/add_worker", params={"url": new}).is_success
        time.sleep(4)
        assert httpx.post(f"{router}/remove_worker", params={"url": old}).is_success
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
        time.sleep(4)

    def client() -> None:
        while not done.is_set():
            response = httpx.post(router + CHAT, json=job[0], timeout=60)
            statuses[step[0], response.status_code] += 1
            assert response.status_code != 200 or content(response) == job[1]
            time.sleep(0.2)

    old_program, new_program = other_release(), BIN / "vllm"
    options = ["--policy=round_robin", "--worker-urls"]
    with (
        release(old_program, "old.txt") as (old, old_url),
        routing(*options, old_url, log=tmp_path / "router.txt") as router,
        ThreadPoolExecutor(3) as threads,
    ):
        clients = [threads.submit(client) for _ in range(3)]
        try:
            with release(new_program, "new.txt") as (new, new_url):
                step[0] = "upgrade"
                move(new_url, old, old_url)
                with release(old_program, "again.txt") as (_, again_url):
                    step[0] = "rollback"
                    move(again_url, new, new_url)
                    done.set()
                    for future in clients:
                        future.result(60)
        finally:
            done.set()
    print(versions, statuses)
    assert {status for _, status in statuses} == {200}
    assert len({name for name, _ in statuses}) == 3
    assert len(versions) == 2


# A dead rank


def kill_worker(log: Path) -> None:
    """End one of the two processes that have a part of the model."""
    text = log.read_text()
    workers = sorted({*re.findall(r"\(Worker_TP\d+ pid=(\d+)\)", text)})
    assert len(workers) == 2, text[-2000:]
    os.kill(int(workers[1]), signal.SIGKILL)


def test_a_dead_rank_ends_the_server(tiny, job, tmp_path):
    """With status 0: test_faults.py tests what changes that."""
    log = tmp_path / "log.txt"
    options = [*SERVER_OPTIONS, EXACT, "--tensor-parallel-size=2"]
    env = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with serving_process(tiny, *options, log=log, env=env) as (process, url):
        assert answer(url, job)
        kill_worker(log)
        start, health = time.monotonic(), {}
        while process.poll() is None and time.monotonic() < start + 60:
            with contextlib.suppress(httpx.HTTPError):
                status = httpx.get(f"{url}/health").status_code
                health.setdefault(status, f"{time.monotonic() - start:.1f} s")
            time.sleep(0.1)
        print(f"ended after {time.monotonic() - start:.1f} s, first statuses", health)
        assert process.poll() == 0
        assert health.keys() <= {200, 503}
    assert "died unexpectedly" in log.read_text()


# A slow client and a hostile tenant


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """The process of a server and its URL."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    env = {"VLLM_API_KEY": "key-of-the-server"}
    with forked_servers(), serving_process(tiny, *OPTIONS, log=log, env=env) as found:
        yield found


KEY = {"Authorization": "Bearer key-of-the-server"}
TENANTS = [f"key-of-tenant-{name}".ljust(64, "X") for name in "ab"]


def seconds_of(url: str, job: tuple[dict, str], key: dict[str, str]) -> float:
    start = time.monotonic()
    response = httpx.post(url + CHAT, json=job[0], headers=key, timeout=60)
    assert content(response) == job[1]
    return time.monotonic() - start


def waiting_or_running(url: str) -> int:
    """Requests whose tokens the engine still makes."""
    names = ("vllm:num_requests_waiting", "vllm:num_requests_running")
    return sum(sums_at(url, name, "engine").total() for name in names)


def test_clients_that_do_not_read_their_answers_delay_nobody(server, job):
    """Twelve of them, at a server that runs four requests at a time."""
    process, url = server
    request = job[0] | {"max_tokens": 900, "stream": True}
    request["stream_options"] = {"include_usage": True}
    alone = seconds_of(url, job, KEY)
    with contextlib.ExitStack() as stack, memory_of(process.pid) as used:
        answers = []
        for _ in range(12):
            client = stack.enter_context(httpx.Client(timeout=60))
            asked = client.stream("POST", url + CHAT, json=request, headers=KEY)
            answers.append(stack.enter_context(asked))
        end = time.monotonic() + 200
        while waiting_or_running(url):
            assert time.monotonic() < end
            time.sleep(0.5)
        beside = seconds_of(url, job, KEY)
        ends = [[line for line in a.iter_lines() if line][-2:] for a in answers]
    print(f"alone {alone:.2f} s, beside {beside:.2f} s, {used.peak:.0f} MB")
    assert beside < alone + 2
    for usage, end in ends:  # nothing is lost
        assert '"completion_tokens":900' in usage.replace(" ", "")
        assert end == "data: [DONE]"
    assert used.peak < 200


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory) -> str:
    """URL of nginx with examples/nginx.conf in front of the server."""
    if not shutil.which("nginx"):
        pytest.skip("needs nginx (Debian's package nginx)")
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    text = (ROOT / "examples/nginx.conf").read_text()
    text = text.replace("127.0.0.1:8000", server[1].removeprefix("http://"))
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    for key in TENANTS:
        text = text.replace(key.rstrip("X") + "$", f"{key}$")
    text = text.replace("at_once 4", "at_once 2")  # half of the requests of this server
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", f"http {{\naccess_log off;\n{paths}")
    (folder / "nginx.conf").write_text(
        f"daemon off; user root; pid {folder}/pid;\n{text}"
    )
    command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "log.txt"]
    with subprocess.Popen(command) as process:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def beside_a_flood(url: str, job, flood: dict, good: dict) -> tuple[float, Counter]:
    """Longest seconds of a good request meanwhile, and statuses of the flood's."""
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def send() -> None:
        request = job[0] | {"max_tokens": 100}
        while not done.is_set():
            found = client.post(url + CHAT, json=request, headers=flood)
            statuses[found.status_code] += 1
            time.sleep(0.2 * (found.status_code == 429))

    with httpx.Client(timeout=90) as client, ThreadPoolExecutor(30) as threads:
        senders = [threads.submit(send) for _ in range(30)]
        time.sleep(2)
        try:
            longest = max(seconds_of(url, job, good) for _ in range(3))
        finally:
            done.set()
        for sender in senders:
            sender.result()
    return longest, statuses


def test_a_hostile_tenant_is_held_to_its_quota(server, proxy, job):
    hostile, good = ({"Authorization": f"Bearer {key}"} for key in TENANTS)
    without, statuses = beside_a_flood(server[1], job, KEY, KEY)
    assert statuses.keys() == {200}
    limited, statuses = beside_a_flood(proxy, job, hostile, good)
    print(f"without a quota {without:.2f} s, with it {limited:.2f} s", statuses)
    assert statuses.keys() == {200, 429}
    assert limited < without / 2


def test_the_proxy_passes_on_nothing_else(proxy, job):
    key = {"Authorization": f"Bearer {TENANTS[0]}"}
    wrong = [TENANTS[0].upper(), TENANTS[0].lower(), TENANTS[0] + "X"]
    for headers in ({}, KEY, *({"Authorization": f"Bearer {it}"} for it in wrong)):
        assert httpx.post(proxy + CHAT, json=job[0], headers=headers).status_code == 401
    for path in ("/metrics", "/tokenize", "/v1/load_lora_adapter", "/v1//models"):
        assert httpx.get(proxy + path, headers=key).status_code == 404
    large = b'{"a": "' + b"x" * 34_000_000 + b'"}'
    assert httpx.post(proxy + CHAT, content=large, headers=key).status_code == 413


# A full disk


@contextlib.contextmanager
def full_disk(tiny, folder: Path, variable: str, *options: str):
    """A server with a folder of 64 kB that are all in use."""
    disk, log = folder / "full", folder / "log.txt"
    disk.mkdir()
    fill = f"mount -t tmpfs -o size=64k tmpfs {disk} && "
    fill += f'head -c 64k /dev/zero > {disk}/file; exec "$@"'
    prefix = ["unshare", "--mount", "bash", "-c", fill, "bash"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("mounts need root and unshare")
    env = {variable: str(disk)}
    with serving_process(tiny, *options, log=log, env=env, prefix=prefix) as (_, url):
        yield url


def test_a_full_disk_of_temporary_files(tiny, job, tmp_path):
    with full_disk(tiny, tmp_path, "TMPDIR", *OPTIONS) as url:
        assert answer(url, job)
        assert main(["probe", url]) == 0


def test_a_full_disk_of_what_is_compiled_is_named_at_start(tiny, tmp_path):
    compiling = [option for option in OPTIONS if option != "--enforce-eager"]
    with (
        pytest.raises(RuntimeError, match="ended with status 1"),
        full_disk(tiny, tmp_path, "VLLM_CACHE_ROOT", *compiling),
    ):
        pass
    assert "No space left on device" in (tmp_path / "log.txt").read_text()


def test_a_full_disk_of_metrics_ends_the_server(tiny, tmp_path):
    """By SIGBUS: Prometheus' client maps files of holes into memory."""
    with (
        pytest.raises(RuntimeError, match=f"ended with status -{signal.SIGBUS:d}"),
        full_disk(tiny, tmp_path, "PROMETHEUS_MULTIPROC_DIR", *OPTIONS),
    ):
        pass
