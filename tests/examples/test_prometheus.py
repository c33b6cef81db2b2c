"""A Prometheus with examples/monitoring scrapes a server, and each alert fires.

Needs Debian's package `prometheus`. The tests build on each other, in their order.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from nemotron_vl.server import free_port, serving_process
from support.chat import ONE_WORKER, SERVER_OPTIONS, data_url, image_part, png_part
from support.monitoring import FOLDER, autoscaler_query, dashboard_queries
from support.servers import forked_servers

pytestmark = [
    pytest.mark.releases,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="needs prometheus and promtool (Debian's package prometheus)",
    ),
]

# The intervals of the rules are short here: nothing else of them is changed.
SHORT = {"[5m]": "[12s]", "[15m]": "[30s]", "[1h]": "[30s]"}
WINDOW = "30s"
SECONDS = 180


class Server(NamedTuple):
    url: str
    engine: int  # process


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_files():
    promtool("check", "rules", "rules.yaml")
    promtool("check", "config", "prometheus.yaml", "prometheus-kubernetes.yaml")


def test_the_rules_fire_when_they_should():
    promtool("test", "rules", "rules_test.yaml")


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    metrics = folder / "metrics"
    metrics.mkdir()
    log = folder / "log.txt"
    options = [
        *SERVER_OPTIONS,
        ONE_WORKER,
        '--additional-config={"nemotron_vl": {"tile_cache_mb": 4}}',
    ]
    env = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    with (
        forked_servers(),
        serving_process(tiny, *options, log=log, env=env) as (_, url),
    ):
        (engine,) = {*re.findall(r"\(EngineCore\S* pid=(\d+)\)", log.read_text())}
        yield Server(url, int(engine))


def shortened(folder: Path, target: str) -> Path:
    """A copy of the configuration that scrapes this address each two seconds."""
    text = re.sub("for: .*", "for: 5s", (FOLDER / "rules.yaml").read_text())
    for interval, short in SHORT.items():
        text = text.replace(interval, short)
    (folder / "rules.yaml").write_text(text)
    text = (FOLDER / "prometheus.yaml").read_text()
    text = text.replace(": 15s", ": 2s").replace("127.0.0.1:8000", target)
    (folder / "prometheus.yaml").write_text(text)
    return folder / "prometheus.yaml"


class Prometheus:
    """Asks one by its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str):
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query: str) -> list:
        query = query.replace("$__rate_interval", WINDOW)
        return self.get("query", query=query)["result"]

    def firing(self) -> set[str]:
        alerts = self.get("alerts")["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    def wait_for(self, alert: str, fires: bool = True) -> None:
        end = time.monotonic() + SECONDS
        while (alert in self.firing()) is not fires:
            assert time.monotonic() < end, (alert, self.get("alerts"))
            time.sleep(0.5)


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{free_port()}"
    config = shortened(folder, server.url.removeprefix("http://"))
    command = ["prometheus", f"--config.file={config}"]
    command += [f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address={address}"]
    with (
        open(folder / "log.txt", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        found = Prometheus(f"http://{address}")
        try:
            end = time.monotonic() + SECONDS
            while True:
                try:
                    if found.ask("up == 1"):
                        break
                except httpx.TransportError:
                    pass
                assert time.monotonic() < end, (folder / "log.txt").read_text()
                time.sleep(0.5)
            yield found
        finally:
            process.terminate()


def ask(server: Server, *parts: dict, tokens: int = 4) -> int:
    """Status of the answer to a chat request."""
    request = {
        "model": "tiny",
        "messages": [{"role": "user", "content": list(parts)}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    path = f"{server.url}/v1/chat/completions"
    return httpx.post(path, json=request, timeout=SECONDS).status_code


def noise(seed: int) -> dict:
    """A page of 13 tiles that nothing has seen."""
    pixels = np.random.default_rng(seed).integers(0, 256, (192, 256, 3), np.uint8)
    return png_part(Image.fromarray(pixels))


TEXT = {"type": "text", "text": "Count."}
BAD = image_part(data_url(b"no image"))


def test_a_tile_cache_that_never_hits(server, prometheus):
    seeds = iter(range(10_000))
    prometheus.wait_for("NemotronVLDown", fires=False)  # of before the first scrape
    assert not prometheus.firing()
    end = time.monotonic() + SECONDS
    while "NemotronVLTileCacheUseless" not in prometheus.firing():
        assert time.monotonic() < end
        assert ask(server, noise(next(seeds)), noise(next(seeds)), TEXT) == 200
    page = Image.new("RGB", (256, 192), "white")
    for shade in range(3):  # the white tiles of the first are cached
        page.paste((shade,) * 3, (0, 0, 9, 9))
        assert ask(server, png_part(page), TEXT) == 200
    prometheus.wait_for("NemotronVLTileCacheUseless", fires=False)


def test_refused_requests(server, prometheus):
    end = time.monotonic() + SECONDS
    while "NemotronVLRefusals" not in prometheus.firing():
        assert time.monotonic() < end
        assert ask(server, BAD, TEXT) == 400
        time.sleep(0.2)


def test_a_queue_that_is_too_long_and_each_query(server, prometheus):
    with ThreadPoolExecutor(24) as threads:
        answers = [
            threads.submit(ask, server, noise(20_000 + n), TEXT, tokens=900)
            for n in range(24)
        ]
        prometheus.wait_for("NemotronVLQueueTooLong")
        assert float(prometheus.ask(autoscaler_query())[0]["value"][1]) > 8
        without_data = [q for q in dashboard_queries() if not prometheus.ask(q[1])]
        assert {answer.result() for answer in answers} == {200}
    time.sleep(4)  # for a scrape after the first answers
    assert not [q for q in without_data if not prometheus.ask(q[1])]


def test_an_engine_that_hangs_and_one_that_dies(server, prometheus):
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(ask, server, TEXT, tokens=1000)
        end = time.monotonic() + SECONDS
        while not prometheus.ask("sum(vllm:num_requests_running) > 0"):
            assert time.monotonic() < end
        os.kill(server.engine, signal.SIGSTOP)
        try:
            prometheus.wait_for("NemotronVLStalled")
            assert "NemotronVLDown" not in prometheus.firing()
        finally:
            os.kill(server.engine, signal.SIGKILL)
        prometheus.wait_for("NemotronVLDown")
        assert answer.exception() or answer.result() >= 500
