"""Threads over one image, and how far one thread is from the memory's speed.

All sides run in this process, in turns, on the page of benchmarks/preprocess.py.
Measured are

- the median and the slowest call of a round with a thread for each core, over those
  with one thread (wall time);
- the same while other processes keep all cores busy, one for each core;
- the CPU time of one thread, against the time that the memory alone takes: the bytes of
  the pixels read, of the tiles written, and of the tiles read for their digests, over
  the measured speed of this machine.

A ratio is median and range of the rounds.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from preprocess import SIZES, TILE, bind, draw

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_threads import (
    IMAGE_THREADS,
)

PAGE = (1700, 2200)
CALLS = 12  # with each number of threads in a round


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take under a minute")
    parser.add_argument("--json", action="store_true", help="figures in the last line")
    args = parser.parse_args()
    rounds = 5 if args.quick else 11
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, dict] = {}

    sizes = (PAGE,) if args.quick else (PAGE, (1920, 1080), (4032, 3024))
    for others in (0, cores):
        title = f"{others} busy processes" if others else "idle"
        found = figures[title] = {}
        print(
            f"\nA call with {cores} threads over one thread, {cores} core(s), {title}"
        )
        with busy_processes(others):
            for recipe, size in itertools.product(("fast", "exact"), sizes):
                name = "{} {}x{}".format(recipe, *size)
                found[name] = compare(processor_call(recipe, size), cores, rounds)
                print(f"{name:>16}  " + "  ".join(map(show, found[name].items())))

    found = figures["memory"] = {}
    read, write = memory_speed()
    print(f"\nMemory: reads {read / 1e9:.1f} GB/s, writes {write / 1e9:.1f} GB/s")
    for size in SIZES[1:4] if args.quick else SIZES[1:]:
        found["{}x{}".format(*size)] = row = compare_with_memory(size, read, write)
        print(
            "{:>5}x{:<5}".format(*size)
            + f"{row['megabytes']:.1f} MB take {row['memory_ms']:.1f} ms, the call "
            f"{row['call_ms']:.1f} ms: {row['share']:.0%}"
        )
    if args.json:
        print(json.dumps(figures))


def processor_call(recipe: str, size: tuple[int, int]) -> Callable[[], object]:
    processor = NemotronVLImageProcessor(TILE, resize=recipe, do_rescale=False)
    return bind(processor, draw(size))


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    program = [sys.executable, "-c", "while True: pass"]
    with contextlib.ExitStack() as started:
        for _ in range(number):
            process = started.enter_context(subprocess.Popen(program))
            started.callback(process.kill)
        yield


def compare(
    call: Callable[[], object], cores: int, rounds: int
) -> dict[str, list[float]]:
    """Ratios of each round: of its median call and of its slowest call."""
    ratios: dict[str, list[float]] = {"median": [], "slowest": []}
    for number in range(rounds + 1):
        took = {}
        # The order changes, so that a drift of the machine cancels.
        for limit in (1, cores) if number % 2 else (cores, 1):
            IMAGE_THREADS.set_limit(limit)
            call()  # starts the threads
            took[limit] = times_of(call)
        if number:
            for name, choose in (("median", statistics.median), ("slowest", max)):
                ratios[name].append(choose(took[cores]) / choose(took[1]))
    return ratios


def times_of(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def show(cell: tuple[str, list[float]]) -> str:
    name, ratios = cell
    middle = statistics.median(ratios)
    return f"{name} {middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def memory_speed() -> tuple[float, float]:
    """Bytes a second that one thread reads, and writes to fresh memory.

    Tiles are always written to fresh memory: vLLM keeps the tensors of an image.
    """
    big = np.ones(256 << 20, np.uint8).view(np.uint64)
    reads = [measure(big.max) for _ in range(5)]
    writes = [measure(lambda: np.empty(10 << 20, np.uint8).fill(1)) for _ in range(15)]
    return big.nbytes / min(reads), (10 << 20) / min(writes)


def compare_with_memory(size: tuple[int, int], read: float, write: float) -> dict:
    call = processor_call("fast", size)
    IMAGE_THREADS.set_limit(1)
    tiles = call()["pixel_values_flat"]
    reads = 4 * size[0] * size[1] + tiles.nbytes
    memory = reads / read + tiles.nbytes / write
    took = min(measure(call) for _ in range(15))
    return {
        "megabytes": (reads + tiles.nbytes) / 1e6,
        "memory_ms": 1000 * memory,
        "call_ms": 1000 * took,
        "share": memory / took,
    }


def measure(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
