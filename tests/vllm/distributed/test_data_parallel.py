"""Several engines or several servers give the same answers as one engine.

With vLLM's data parallel, the engines of one server share its requests, on one host
and on two.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageDraw

from nemotron_vl.server import serving
from nemotron_vl.verify.reference import Reference
from support.chat import content, png_part
from support.clips import VIDEO_SWITCH, encoded, numbers, video_part
from support.served import (
    BIN,
    OPTIONS,
    TOKENS,
    answers,
    finished,
    routing,
    served_by_engine,
    tiles,
)
from support.servers import forked_servers

RECEIVED = r"\(ApiServer_(\d) .*Received request"


@pytest.fixture(scope="module")
def service(tiny, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The URL and the log of a server of two engines and two API servers."""
    options = [
        "--data-parallel-size=2",
        "--api-server-count=2",
        "--enable-log-requests",
        '--additional-config={"nemotron_vl": {"tile_cache_mb": 1}}',
    ]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with contextlib.ExitStack() as stack:
        with forked_servers():
            url = stack.enter_context(serving(tiny, *OPTIONS, *options, log=log))
        yield url, log


def test_two_engines_and_two_api_servers_of_one_server(service, requests):
    url, log = service
    before = served_by_engine(url)
    expected = [job["answer"] for job in requests] * 2
    assert answers(url, requests) == expected
    assert answers(url, requests) == expected  # some tiles cached
    counts = served_by_engine(url) - before
    assert counts.total() == 4 * len(requests)
    assert min(counts["0"], counts["1"]) > 0
    assert set(re.findall(RECEIVED, log.read_text())) == {"0", "1"}


def test_a_client_keeps_its_engine_and_its_tiles(service, tmp_path):
    """Whichever API server takes a request, a tile of a client is encoded once."""
    url, log = service
    before, tiles_before = served_by_engine(url), tiles(url)
    options = ["--policy=consistent_hash", "--intra-node-data-parallel-size=2"]
    options.append(f"--worker-urls={url}")
    start = log.stat().st_size
    asked, api_servers = 0, set()

    def ask(number: int) -> None:
        # Two tiles and a thumbnail. The first tile is always the same.
        image = Image.new("RGB", (256, 128), "white")
        draw = ImageDraw.Draw(image)
        draw.text((10, 50), "12.50", fill="black")
        draw.text((138, 50), str(number), fill="black")
        message = {"role": "user", "content": [png_part(image)]}
        request = {"model": "tiny", "messages": [message], "max_tokens": 1, "user": "a"}
        content(httpx.post(f"{router}/v1/chat/completions", json=request, timeout=60))

    # The router keeps connections; only requests at once need several of them.
    with (
        routing(*options, log=tmp_path / "router.txt") as router,
        ThreadPoolExecutor(4) as threads,
    ):
        while asked < 8 or len(api_servers) < 2:
            list(threads.map(ask, range(asked, asked + 4)))
            asked += 4
            assert asked < 100, "one API server takes all requests"
            api_servers = set(re.findall(RECEIVED, log.read_text()[start:]))
    assert sorted((served_by_engine(url) - before).values()) == [asked]
    counts = tiles(url) - tiles_before
    assert counts["encoded"] == 1 + 2 * asked
    assert counts.total() == 3 * asked


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
        counts = served_by_engine(url)
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
from support.served import answers
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
    counts = finished(metrics)
    assert counts.total() == 2 * len(requests)
    assert min(counts["0"], counts["1"]) > 0
