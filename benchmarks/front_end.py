"""Images per second of one API server, and its CPU time per image, with an engine that
costs nothing; and of a render server, which has no engine.

Each server does in-tree's processing and ours: a request says which one it wants. The
server has a core of its own. Its engine and the clients, who send scanned pages of
1700x2200 as JPEG in data URLs, share the others. Rounds of both sides take turns, and
every request of a round has a different image. Nothing is cached. With --cache, vLLM's
cache of processed images is on and each image is new, so that its tiles are kept.

A ratio is in-tree's CPU time over ours, as median and range of the rounds. "busy" is
the part of a core that the clients took: near 100 % they limit the pages per second.
"""

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import free_engine
import httpx
import psutil
from options import make_parser
from serve import add_plugin, draw_pages

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.server import free_port, running

CLIENTS = (1, 4, 16, 64)
SIDES: dict[str, dict] = {  # what is added to the requests
    "in-tree": {"mm_processor_kwargs": {"in_tree": True}},
    "exact": {"mm_processor_kwargs": {"resize": "exact"}},
    "fast": {"mm_processor_kwargs": {"resize": "fast"}},
}
TILE = 512
OPTIONS = (
    "--served-model-name=page",
    "--max-model-len=8192",
    "--no-enable-prefix-caching",
    "--trust-request-mm-kwargs",
    "--disable-uvicorn-access-log",
)
CACHES = {
    "none": ("--mm-processor-cache-gb=0",),
    "lru": ("--mm-processor-cache-gb=4",),
    "shm": ("--mm-processor-cache-gb=4", "--mm-processor-cache-type=shm"),
}
SERVERS = {  # command, its own options, path
    "API server": ("serve", free_engine.OPTIONS, "/v1/chat/completions"),
    "render server": ("launch render", (), "/v1/chat/completions/render"),
}


@dataclass
class Round:
    """What a server took for one round."""

    pages_per_second: float
    cpu_ms: float  # of the API server, for a page
    answer_kb: float
    clients_busy: float  # part of a core


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--cache", choices=CACHES, default="none")
    args = parser.parse_args()
    numbers = (1, 16) if args.quick else CLIENTS
    requests, rounds = (8, 1) if args.quick else (32, 3)
    pages = draw_pages(max(requests, *numbers))
    calls = itertools.count()

    def some(number: int) -> list[str]:
        if args.cache == "none":
            return pages[:number]
        return draw_pages(number, first=next(calls) * len(pages))

    figures: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add_plugin(folder)
        make_checkpoint(folder / "model", tile_size=TILE, cpe_max_size=TILE)
        for server, (command, options, path) in SERVERS.items():
            if "launch" in command and args.cache != "none":
                continue  # it has no such cache
            figures[server] = {}
            all_options = [*OPTIONS, *CACHES[args.cache], *options]
            with started(folder, command, all_options) as (url, process):
                for extra in SIDES.values():  # warms up and compiles
                    measure(url + path, process, some(2), 1, **extra)
                for clients in numbers:
                    number = max(requests, clients)
                    found = [
                        {
                            side: measure(
                                url + path, process, some(number), clients, **extra
                            )
                            for side, extra in SIDES.items()
                        }
                        for _ in range(rounds)
                    ]
                    figures[server][clients] = summarise(found)
            print_found(server, figures[server])
    if args.json:
        print(json.dumps(figures))


@contextlib.contextmanager
def started(
    folder: Path, command: str, options: Sequence[str]
) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server on the first core of this process; everything else leaves it."""
    own, *others = sorted(os.sched_getaffinity(0))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    vllm = str(Path(sys.executable).with_name("vllm"))
    program = ["taskset", "-c", str(own), vllm, *command.split(), str(folder / "model")]
    program += ["--host=127.0.0.1", f"--port={port}", *options]
    with running(program, url=url, log=folder / "log") as started:
        server = psutil.Process(started.pid)
        os.sched_setaffinity(0, others or [own])
        for process in server.children(recursive=True):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, others or [own])
        try:
            yield url, server
        finally:
            os.sched_setaffinity(0, [own, *others])


def measure(
    url: str, server: psutil.Process, pages: list[str], clients: int, **extra
) -> Round:
    before, own = cpu_seconds(server), time.process_time()
    start = time.perf_counter()
    size = asyncio.run(ask_all(url, pages, clients, extra))
    seconds = time.perf_counter() - start
    cpu, own = cpu_seconds(server) - before, time.process_time() - own
    return Round(
        pages_per_second=len(pages) / seconds,
        cpu_ms=1000 * cpu / len(pages),
        answer_kb=size / len(pages) / 1e3,
        clients_busy=own / seconds,
    )


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def ask_all(url: str, pages: list[str], clients: int, extra: dict) -> int:
    """Bytes of all answers."""
    waiting = iter(pages)
    size = 0
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:

        async def work() -> None:
            nonlocal size
            for page in waiting:
                answer = await client.post(url, json={**request(page), **extra})
                answer.raise_for_status()
                size += len(answer.content)

        await asyncio.gather(*(work() for _ in range(clients)))
    return size


def request(page: str) -> dict:
    content = [
        {"type": "image_url", "image_url": {"url": page}},
        {"type": "text", "text": "Read the text."},
    ]
    return {
        "model": "page",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 1,
        "temperature": 0,
    }


def summarise(rounds: list[dict[str, Round]]) -> dict[str, dict[str, float]]:
    found = {}
    for side in SIDES:
        own = [turn[side] for turn in rounds]
        ratios = [turn["in-tree"].cpu_ms / turn[side].cpu_ms for turn in rounds]
        found[side] = {
            "pages_per_s": statistics.median(r.pages_per_second for r in own),
            "cpu_ms": statistics.median(r.cpu_ms for r in own),
            "answer_kb": statistics.median(r.answer_kb for r in own),
            "clients_busy": statistics.median(r.clients_busy for r in own),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return found


def print_found(server: str, found: dict[int, dict[str, dict[str, float]]]) -> None:
    print(f"\n{server}")
    print("clients  side      pages/s  CPU ms/page  answer kB  busy  ratio (range)")
    for clients, sides in found.items():
        for side, row in sides.items():
            print(
                f"{clients:>7}  {side:<8} {row['pages_per_s']:8.1f}"
                f" {row['cpu_ms']:12.1f} {row['answer_kb']:10.1f}"
                f" {row['clients_busy']:5.0%}  {row['ratio']:.1f} "
                f"({row['ratio_min']:.1f}-{row['ratio_max']:.1f})"
            )


if __name__ == "__main__":
    main()
