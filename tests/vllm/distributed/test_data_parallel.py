"""Several engines or several servers give the same answers as one engine.

With vLLM's data parallel, the engines of one server share its requests, on one host
and on two. With vllm-router, independent servers share them.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from drawn_text import make_question
from nemotron_vl.server import free_port, running, serving, serving_process
from nemotron_vl.verify.reference import Reference
from support.chat import (
    EXACT,
    EXIT_STATUS,
    ONE_WORKER,
    SERVER_OPTIONS,
    chat_request,
    content,
    reference_text,
)
from support.clips import VIDEO_SWITCH, encoded, numbers, video_part
from support.servers import forked_servers
from typefaces import PILLOW_FONT

BIN = Path(sys.executable).parent
TOKENS = 12
OPTIONS = [*SERVER_OPTIONS, EXACT, ONE_WORKER]


@pytest.fixture(scope="module")
def requests(tiny) -> list[dict]:
    """Chat requests with one image and with two, and their answers."""
    reference = Reference.load(tiny)
    rng = random.Random(4)
    kinds = ["read", "read", "both", "lines", "both", "count"]
    questions = [make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds]
    return [
        {
            "request": chat_request(question, tokens=TOKENS),
            "answer": reference_text(reference, question, tokens=TOKENS),
        }
        for question in questions
    ]


def answers(url: str, requests: list[dict]) -> list[str]:
    """Send all requests at once, each twice."""

    def ask(job: dict) -> str:
        address = f"{url}/v1/chat/completions"
        return content(httpx.post(address, json=job["request"], timeout=120))

    with ThreadPoolExecutor(2 * len(requests)) as threads:
        return list(threads.map(ask, requests * 2))


def served_by_engine(metrics: str) -> Counter:
    """Count the finished requests of each engine in the text of ``/metrics``."""
    counts: Counter[str] = Counter()
    for line in metrics.splitlines():
        if line.startswith("vllm:request_success_total{"):
            engine = line.partition('engine="')[2].partition('"')[0]
            counts[engine] += int(float(line.split()[-1]))
    return counts


def test_two_engines_and_two_api_servers_of_one_server(tiny, requests, tmp_path):
    options = [
        "--data-parallel-size=2",
        "--api-server-count=2",
        "--enable-log-requests",
        '--additional-config={"nemotron_vl": {"tile_cache_mb": 1}}',
    ]
    log = tmp_path / "log.txt"
    with forked_servers(), serving(tiny, *OPTIONS, *options, log=log) as url:
        expected = [job["answer"] for job in requests] * 2
        assert answers(url, requests) == expected
        assert answers(url, requests) == expected  # some tiles cached
        counts = served_by_engine(httpx.get(f"{url}/metrics").text)
        assert counts.total() == 4 * len(requests)
        assert min(counts["0"], counts["1"]) > 0
    line = r"\(ApiServer_(\d) .*Received request"
    served = re.findall(line, log.read_text())
    assert set(served) == {"0", "1"}


@pytest.mark.releases
def test_videos_on_two_engines_and_two_api_servers(tiny, requests, tmp_path):
    """The settings of our loader reach each API server."""
    reference, job = Reference.load(tiny), requests[0]
    clips = [numbers(str(number), "640-27") for number in range(6)]
    asked = [
        {
            "request": job["request"]
            | {"messages": [{"role": "user", "content": [video_part(encoded(clip))]}]},
            "answer": reference.tokenizer.decode(
                reference.answer(
                    "<|start_header_id|>user<|end_header_id|>\n\n<img></img><|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n",
                    [],
                    TOKENS,
                    [clip],
                )[1]
            ),
        }
        for clip in clips
    ]
    options = [*VIDEO_SWITCH, "--data-parallel-size=2", "--api-server-count=2"]
    log = tmp_path / "log.txt"
    with forked_servers(), serving(tiny, *OPTIONS, *options, log=log) as url:
        jobs = [*asked, *requests]  # images, too
        assert answers(url, jobs) == [job["answer"] for job in jobs] * 2
        counts = served_by_engine(httpx.get(f"{url}/metrics").text)
        assert min(counts["0"], counts["1"]) > 0
        # Without --trust-request-mm-kwargs
        frames = {"media_io_kwargs": {"video": {"num_frames": 2}}}
        refused = httpx.post(
            f"{url}/v1/chat/completions", json=asked[0]["request"] | frames
        )
        assert refused.status_code == 400
        assert "--trust-request-mm-kwargs" in refused.text


# Two hosts


def _can_make_hosts() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "nemotron-try"], capture_output=True)
    if made.returncode:
        return False
    subprocess.run(["ip", "netns", "del", "nemotron-try"], check=True)
    return True


@pytest.fixture
def hosts():
    """Two network namespaces joined by a virtual cable, with their addresses."""
    if not _can_make_hosts():
        pytest.skip("network namespaces need root and iproute2 (ip netns)")
    names = {f"nemotron-{i}-{os.getpid()}": f"10.77.0.{i}" for i in (1, 2)}
    first, second = names

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        cable = ["type", "veth", "peer", "name", "eth1", "netns", second]
        ip("link", "add", "eth1", "netns", first, *cable)
        for name, address in names.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth1")
            ip("-n", name, "link", "set", "eth1", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def on(host: str, *command: str | Path) -> list[str]:
    return ["ip", "netns", "exec", host, *map(str, command)]


CLIENT = """
import json, sys
import httpx
sys.path[:0] = json.loads(sys.argv[2])
from test_data_parallel import answers
url, requests = sys.argv[1], json.load(open(sys.argv[3]))
print(json.dumps([answers(url, requests), httpx.get(url + "/metrics").text]))
"""


@pytest.mark.releases
def test_engines_on_two_hosts(tiny, requests, hosts, tmp_path):
    """vLLM's own multi-node data parallel: the second host is headless."""
    (first, address), (second, other_address) = hosts.items()
    options = [
        *OPTIONS,
        "--data-parallel-size=2",
        "--data-parallel-size-local=1",
        f"--data-parallel-address={address}",
        "--data-parallel-rpc-port=13345",
    ]
    url = "http://127.0.0.1:8000"  # on the first host
    commands = [
        on(first, BIN / "vllm", "serve", tiny, *options, "--host=127.0.0.1"),
        on(
            second,
            *(BIN / "vllm", "serve", tiny, *options),
            *("--headless", "--data-parallel-start-rank=1"),
        ),
    ]
    nodes = []
    try:
        for number, (command, own) in enumerate(
            zip(commands, (address, other_address), strict=True)
        ):
            with open(tmp_path / f"host{number}.txt", "wb") as log:
                nodes.append(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        env={
                            **os.environ,
                            "VLLM_HOST_IP": own,
                            "GLOO_SOCKET_IFNAME": "eth1",
                        },
                    )
                )
        (tmp_path / "requests.json").write_text(json.dumps(requests))
        python = on(first, sys.executable, "-c")
        health = f"import urllib.request as r; r.urlopen('{url}/health', timeout=5)"
        deadline = time.monotonic() + 300
        while subprocess.run([*python, health], stderr=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline
            assert all(node.poll() is None for node in nodes), (
                tmp_path / "host0.txt"
            ).read_text()[-3000:]
        asked = subprocess.run(
            [
                *(*python, CLIENT, url),
                json.dumps([p for p in sys.path if p]),
                str(tmp_path / "requests.json"),
            ],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert asked.returncode == 0, asked.stderr[-3000:]
        found, metrics = json.loads(asked.stdout.splitlines()[-1])
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    assert found == [job["answer"] for job in requests] * 2
    counts = served_by_engine(metrics)
    assert counts.total() == 2 * len(requests)
    assert min(counts["0"], counts["1"]) > 0


# Independent servers behind a router


def test_a_server_behind_the_router_is_killed_under_load(tiny, requests, tmp_path):
    """Each request gets the right answer or a status that a client may retry."""
    clients, seconds = 4, 12
    with contextlib.ExitStack() as stack:
        servers, urls = [], []

        def start(number: int) -> tuple[subprocess.Popen, str]:
            return stack.enter_context(
                serving_process(
                    tiny,
                    *OPTIONS,
                    "--shutdown-timeout=60",
                    EXIT_STATUS,
                    log=tmp_path / f"server{number}.txt",
                )
            )

        # The first is no fork: its exit status is tested.
        for number, context in enumerate((contextlib.nullcontext(), forked_servers())):
            with context:
                server, url = start(number)
            servers.append(server)
            urls.append(url)
        port = free_port()
        router = f"http://127.0.0.1:{port}"
        command = [str(BIN / "vllm-router"), "--host=127.0.0.1", f"--port={port}"]
        command += [f"--prometheus-port={free_port()}", "--prometheus-host=127.0.0.1"]
        command += ["--policy=round_robin", "--worker-urls", *urls]
        stack.enter_context(running(command, url=router, log=tmp_path / "router.txt"))

        found: list[tuple[int, str, str, bool]] = []
        end = time.monotonic() + seconds
        killed = threading.Event()

        def client(number: int) -> None:
            address = f"{router}/v1/chat/completions"
            turn = number
            while time.monotonic() < end:
                job = requests[turn % len(requests)]
                turn += 1
                late = killed.is_set()
                response = httpx.post(address, json=job["request"], timeout=30)
                good = response.status_code == 200
                text = content(response) if good else response.text
                found.append((response.status_code, text, job["answer"], late))

        with ThreadPoolExecutor(clients) as threads:
            running_clients = [threads.submit(client, n) for n in range(clients)]
            time.sleep(seconds / 2)
            assert found, "no request was answered before the server was killed"
            os.killpg(servers[1].pid, signal.SIGKILL)
            killed.set()
            for future in running_clients:
                future.result(timeout=60)  # fails if a request hangs

        # The router itself answers 500 if a connection breaks while it sends.
        unexpected = [
            (status, text)
            for status, text, *_ in found
            if status not in (200, 502, 503)
            and not text.startswith("Request failed: error sending request")
        ]
        assert not unexpected
        assert all(text == answer for status, text, answer, _ in found if status == 200)
        late = [status for status, *_, late in found if late]
        assert late.count(200) > 10
        # By then the router sends nothing to the dead server.
        assert set(late[-10:]) == {200}

        # After SIGTERM a server finishes its requests, then exits.
        long = {**requests[0]["request"], "max_tokens": 800, "stream": True}
        address = f"{urls[0]}/v1/chat/completions"
        with httpx.stream("POST", address, json=long, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            servers[0].send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert servers[0].wait(60) == 0
