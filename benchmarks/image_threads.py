"""Threads over one image, and how far one thread is from the memory's speed.

All sides run in this process, in turns, on the page of benchmarks/preprocess.py.
Measured are

- the wall time of a call with a thread for each core, over that with one thread: its
  quantiles over all calls, and the range of the medians of the rounds;
- the same while other processes keep all cores busy, one for each core;
- the CPU time of one thread, against the time that the memory alone takes: the bytes of
  the pixels read, of the tiles written, and of the tiles read for their digests, over
  the measured speed of this machine.
"""

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
from engine_process import TILE
from options import make_parser
from preprocess import SIZES, bind, draw
from timing import order

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    threads as image_threads,
)

PAGE = (1700, 2200)
CALLS = 12  # with each number of threads in a round
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def main() -> None:
    args = make_parser(__doc__).parse_args()
    rounds = 5 if args.quick else 20
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
                cells = (f"{key} {value:.2f}" for key, value in found[name].items())
                print(f"{name:>16}  " + "  ".join(cells))

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


def compare(call: Callable[[], object], cores: int, rounds: int) -> dict[str, float]:
    """Ratios of quantiles of all calls, and the median ratio of each round."""
    took: dict[int, list[float]] = {1: [], cores: []}
    medians = []
    for number in range(rounds + 1):
        turn = {}
        for name in order(map(str, took), number):
            limit = int(name)
            image_threads.IMAGE_THREADS.set_limit(limit)
            call()  # starts the threads
            turn[limit] = times_of(call)
        if number:
            medians.append(statistics.median(turn[cores]) / statistics.median(turn[1]))
            for limit, times in turn.items():
                took[limit] += times
    ratios = {
        name: float(np.quantile(took[cores], share) / np.quantile(took[1], share))
        for name, share in QUANTILES.items()
    }
    return {**ratios, "round_min": min(medians), "round_max": max(medians)}


def times_of(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


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
    image_threads.IMAGE_THREADS.set_limit(1)
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
