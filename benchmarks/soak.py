"""Sends good and bad requests from 1 to 32 clients for a long time.

A server with the embedded checkpoint is asked about drawn text in one or two images and
about strips of up to 131,072 pixels. Some requests ask for structured outputs, some
clients leave before the answer, and every tenth request is a bad one. Each answer is
compared with that of the reference implementation or with its JSON schema, and each bad
request must be refused with status 400. A request that gets status 500 is sent once
more. During the first half of the time the number of clients grows from 1 to 32. During
the second half it is 8, and in every other sixth of that half an attacker is there, who
sends hostile files, and images under the names of other clients' images, one request
after the other. The ratio of the 99th percentiles with and without the attacker is
given as median and range of the three pairs. The memory of all server processes is
measured every two seconds. Its slope is fitted over the second half without the first
fifth of it. Exits with status 1 if an answer was wrong or lost.
"""

import argparse
import itertools
import json
import math
import os
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from options import make_parser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# The root is first: `tests/nemotron_vl` would hide the package.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("", "tests", "tools")]

import httpx
from soak_attacks import MOST_PIXELS, attack, attacks
from soak_requests import GOOD_OUTCOMES, Job, ask, choose_job, make_jobs

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.server import serving_process

STEADY = 8
LOG = Path(__file__).parents[1] / "build/soak.txt"  # of the server


class Phase(NamedTuple):
    """A part of the time.

    Args:
        share: Share of the time.
        clients: How many there are.
        attackers: Besides them.
    """

    share: float
    clients: int
    attackers: int = 0

    def __str__(self) -> str:
        return (
            f"{self.clients} and an attacker" if self.attackers else f"{self.clients}"
        )


class Done(NamedTuple):
    seconds: float
    outcome: str


GROWING = [Phase(1 / 12, clients) for clients in (1, 2, 4, 8, 16, 32)]
PAIRS = [Phase(1 / 12, STEADY, attackers) for attackers in (0, 1)] * 3
PHASES = GROWING + PAIRS


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--questions", type=int, default=150, help="different ones to ask"
    )
    parser.add_argument(
        "--plot", type=Path, help="file for a plot of latencies and memory"
    )
    args = parser.parse_args()
    minutes, questions = (0.15, 12) if args.quick else (args.minutes, args.questions)
    jobs = make_jobs(questions)
    options = [
        *("--served-model-name=tiny", "--dtype=float32", "--enforce-eager"),
        "--max-model-len=1024",
        *("--max-num-seqs=16", "--mm-processor-cache-gb=0.05"),
        '--limit-mm-per-prompt={"image": 2}',
        '--mm-processor-kwargs={"resize": "exact"}',
        '--additional-config={"nemotron_vl": {"tile_cache_mb": 4}}',
        # The model has not learnt JSON: it would write spaces for ever.
        '--structured-outputs-config={"backend": "xgrammar", '
        '"disable_any_whitespace": true}',
    ]
    # With vLLM's keep-alive of 5 s, a client that pauses as long sometimes loses a
    # request. With glibc's default of one arena per thread, memory fragments and grows.
    env = {
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "MALLOC_ARENA_MAX": "1",
        "VLLM_MAX_IMAGE_PIXELS": str(MOST_PIXELS),
    }
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with serving_process(tiny_checkpoint(), *options, log=LOG, env=env) as (
        server,
        url,
    ):
        done, memory = soak(url, server.pid, jobs, 60 * minutes)
    return report(done, memory, args)


def soak(url: str, pid: int, jobs: dict[str, list[Job]], seconds: float):
    """Send requests for so many seconds.

    Returns:
        What was done in each of `PHASES`, and seconds and megabytes.
    """
    hostile = itertools.cycle(attacks(jobs["reading"][:STEADY]))
    memory: list[tuple[float, float]] = []
    over = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not over.wait(2):
            memory.append((time.monotonic() - start, megabytes(pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = [
        during(phase, phase.share * seconds, url, jobs, hostile) for phase in PHASES
    ]
    over.set()
    watcher.join()
    return done, memory


def during(
    phase: Phase,
    seconds: float,
    url: str,
    jobs: dict[str, list[Job]],
    hostile: Iterator[dict],
) -> list[Done]:
    """Send the requests of a phase."""
    done: list[Done] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(1000 * phase.clients + number)

        def send(connection: httpx.Client) -> str:
            return ask(connection, choose_job(rng, jobs), rng)

        until_the_end(send)

    def attacker() -> None:
        until_the_end(lambda connection: attack(connection, next(hostile)))

    def until_the_end(send: Callable[[httpx.Client], str]) -> None:
        with httpx.Client(base_url=url, timeout=120) as connection:
            while time.monotonic() < end:
                began = time.monotonic()
                outcome = send(connection)
                done.append(Done(time.monotonic() - began, outcome))

    threads = [
        threading.Thread(target=client, args=(number,))
        for number in range(phase.clients)
    ]
    threads += [threading.Thread(target=attacker) for _ in range(phase.attackers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def megabytes(leader: int) -> float:
    """Memory of a process group; shared memory is divided among its users (PSS)."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getpgid(int(folder.name)) == leader:
                text = (folder / "smaps_rollup").read_text()
                total += int(text.split("\nPss:")[1].split()[0])
        except (OSError, IndexError):
            continue  # the process has just ended
    return total / 1000


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least-squares slope in megabytes an hour, and its standard error."""
    if len(points) < 3:
        return math.nan, math.nan
    times, sizes = zip(*points, strict=True)
    fit = statistics.linear_regression(times, sizes)
    rests = [y - fit.slope * x - fit.intercept for x, y in points]
    spread = math.sqrt(sum(r * r for r in rests) / (len(points) - 2))
    centre = statistics.fmean(times)
    error = spread / math.sqrt(sum((x - centre) ** 2 for x in times))
    return 3600 * fit.slope, 3600 * error


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(done: Iterable[Done]) -> list[float]:
    """Of the right answers."""
    return [1000 * one.seconds for one in done if one.outcome == "right"]


def report(done: list[list[Done]], memory, args: argparse.Namespace) -> int:
    outcomes = Counter(one.outcome for phase in done for one in phase)
    figures: dict = {"outcomes": dict(outcomes), "clients": {}}
    print("\n| clients | answers/s | p50 [ms] | p90 | p99 | longest |\n|" + "---|" * 6)
    for phase in dict.fromkeys(PHASES):
        parts = [d for d, p in zip(done, PHASES, strict=True) if p == phase]
        mine = [one for part in parts for one in part if one.outcome != "attack"]
        if not (good := milliseconds(mine)):
            continue
        seconds = sum(one.seconds for one in mine) / phase.clients
        row = [percentile(good, share) for share in (0.5, 0.9, 0.99)] + [max(good)]
        figures["clients"][str(phase)] = {"per_second": len(mine) / seconds, "ms": row}
        cells = " | ".join(f"{value:.0f}" for value in row)
        print(f"| {phase} | {len(mine) / seconds:.1f} | {cells} |")
    print(
        f"\n{outcomes.total()} requests: "
        + ", ".join(f"{n} {o}" for o, n in outcomes.items())
    )
    late = [
        percentile(milliseconds(part) or [math.nan], 0.99)
        for part in done[len(GROWING) :]
    ]
    times = [hit / calm for calm, hit in zip(late[::2], late[1::2], strict=True)]
    figures["p99_times"] = times
    print(
        f"p99 with an attacker: {statistics.median(times):.2f} times "
        f"({min(times):.2f} to {max(times):.2f})"
    )
    settled = [point for point in memory if point[0] > 0.6 * memory[-1][0]]
    rise, error = slope(settled)
    figures |= {"mb_per_hour": rise, "error": error}
    first, last = settled[0][1], settled[-1][1]
    print(f"memory: {first:.0f} to {last:.0f} MB, {rise:+.0f} +- {error:.0f} MB/h")
    if args.plot:
        plot(done, memory, args.plot)
    if args.json:
        print(json.dumps(figures))
    return 0 if outcomes.keys() <= GOOD_OUTCOMES else 1


def plot(done: list[list[Done]], memory, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for share in (0.5, 0.9, 0.99):
        points = {
            phase.clients: percentile(found, share)
            for phase, part in zip(GROWING, done, strict=False)
            if (found := milliseconds(part))
        }
        left.plot([*points], [*points.values()], "o-", label=f"p{100 * share:.0f}")
    left.set(xlabel="clients", ylabel="ms", xscale="log", yscale="log", ylim=(1, None))
    left.set_xticks([*points], [str(clients) for clients in points])
    left.legend()
    right.plot([t / 60 for t, _ in memory], [size for _, size in memory])
    right.set(xlabel="minutes", ylabel="MB of all processes", ylim=(0, None))
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
