"""What several engines or servers answered, and which of them did."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from nemotron_vl.server import free_port, running
from support.chat import EXACT, ONE_WORKER, SERVER_OPTIONS, content

BIN = Path(sys.executable).parent
TOKENS = 12
OPTIONS = [*SERVER_OPTIONS, EXACT, ONE_WORKER]
FINISHED = "vllm:request_success_total"


def answers(url: str, requests: list[dict]) -> list[str]:
    """Send all requests at once, each twice."""

    def ask(job: dict) -> str:
        address = f"{url}/v1/chat/completions"
        return content(httpx.post(address, json=job["request"], timeout=120))

    with ThreadPoolExecutor(2 * len(requests)) as threads:
        return list(threads.map(ask, requests * 2))


def served_by_engine(url: str) -> Counter:
    """The finished requests of each engine of a server."""
    return sums_at(url, FINISHED, "engine")


def finished(metrics: str) -> Counter:
    return _sums(metrics, FINISHED, "engine")


def tiles(url: str) -> Counter:
    """The tiles of each outcome: encoded, repeated or cached."""
    return sums_at(url, "vllm:mm_tiles_total", "outcome")


def sums_at(url: str, name: str, label: str) -> Counter:
    """The sums of a metric's series at a server now, by the values of a label."""
    return _sums(httpx.get(f"{url}/metrics").text, name, label)


def _sums(metrics: str, name: str, label: str) -> Counter:
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == name:
                counts[sample.labels[label]] += int(sample.value)
    return counts


@contextlib.contextmanager
def routing(*options: str, log: Path) -> Iterator[str]:
    """The URL of vllm-router with these options."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(BIN / "vllm-router"), "--host=127.0.0.1", f"--port={port}"]
    command += [f"--prometheus-port={free_port()}", "--prometheus-host=127.0.0.1"]
    with running([*command, *options], url=url, log=log):
        yield url
