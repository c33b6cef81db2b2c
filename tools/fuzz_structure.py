#!/usr/bin/env python3
"""Fuzzing of the code that reads images by the structure of files.

    python tools/fuzz_structure.py --seconds 600

`fuzz_images.py` changes bytes; this takes files of many parts (`many_parts/`).
Numbers of parts and of pixels are drawn at random, and the costliest file of each kind
is searched from there. Each file is read in a process of its own. The table shows the
costliest file of each kind: its bytes, the seconds of CPU time, the peak of memory, and
the answer. Add what is worse than the rest to MANY_PARTS of tests/support/bad_files.py.
"""

import argparse
import multiprocessing
import random
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

from many_parts import KINDS

# The images of a request that a proxy as in docs/security.md lets through
MOST_BYTES = 24_000_000
MOST_PIXELS = 178_956_970


class Cost(NamedTuple):
    """What reading a file took.

    Args:
        seconds: CPU time.
        peak: Bytes of memory at most.
        answer: Size of the image, or why it is not read.
    """

    seconds: float
    peak: int
    answer: str


def measure(read: Callable[[bytes], object], data: bytes, limit: int = 60) -> Cost:
    """Read a file in a process of its own, for at most so many seconds of CPU time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        before, start = _memory("VmRSS"), time.process_time()
        try:
            answer = str(read(data))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        theirs.send((time.process_time() - start, _memory("VmHWM") - before, answer))

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        return Cost(*ours.recv())
    except EOFError:
        return Cost(limit, 0, f"ended after {limit} s")
    finally:
        process.join()


def _memory(key: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return 1024 * int(line.split()[1])


def read(data: bytes) -> str:
    """Load a file as a server does."""
    from vllm.multimodal.media.image import ImageMediaIO

    from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO
    from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
        png,
    )

    image = CheckedImageIO(ImageMediaIO(), (), load=png.load).load_bytes(data)
    return "{}x{}".format(*image.media.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="default: 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS])
    options = parser.parse_args()
    rng = random.Random(options.seed)
    read(KINDS["png_chunks"](1, 1))  # imports before the forks
    worst: dict[str, tuple[float, int, int, int, Cost]] = {}
    end = time.monotonic() + options.seconds
    tried = 0
    while time.monotonic() < end:
        kind = rng.choice(options.kinds)
        parts, pixels = 10 ** rng.uniform(0, 7), 10 ** rng.uniform(0, 8.25)
        if kind in worst and rng.random() < 0.5:
            factor = 2 ** rng.gauss(0, 1), 2 ** rng.gauss(0, 1)
            parts, pixels = worst[kind][1] * factor[0], worst[kind][2] * factor[1]
        parts, pixels = int(parts), min(int(pixels), MOST_PIXELS)
        data = KINDS[kind](max(1, min(parts, 10**7)), max(1, pixels))
        if len(data) > MOST_BYTES:
            continue
        tried += 1
        cost = measure(read, data)
        if kind not in worst or cost.seconds > worst[kind][0]:
            worst[kind] = (cost.seconds, parts, pixels, len(data), cost)
    print(f"{tried} files")
    for kind, (seconds, parts, pixels, size, cost) in sorted(
        worst.items(), key=lambda item: -item[1][0]
    ):
        print(
            f"{kind:22} {parts:9} parts {pixels:11} pixels {size:9} B {seconds:7.2f} s "
            f"{cost.peak / 1e6:6.0f} MB  {cost.answer[:80]}"
        )


if __name__ == "__main__":
    main()
