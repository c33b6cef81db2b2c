"""Processor calls per picture: vLLM's in-tree version against this one.

Both run in this process on one thread, in alternation, on the same pictures.
The ratio is in-tree time over ours, as median and range of the pairs.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from PIL import Image
from vllm.transformers_utils.processors.nemotron_vl import (
    LlamaNemotronNanoVLImageProcessor,
)

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)

SIZES = [(512, 512), (640, 480), (1920, 1080), (1700, 2200), (2480, 3508), (4032, 3024)]
SETTINGS = dict(
    image_size=512,
    min_dynamic_patch=1,
    max_dynamic_patch=12,
    dynamic_image_size=True,
    use_thumbnail=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", action="store_true", help="figures as last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    in_tree = LlamaNemotronNanoVLImageProcessor(**SETTINGS)
    ours = NemotronVLImageProcessor(**SETTINGS, do_rescale=False)

    figures = {}
    print("size        in-tree ms  ours ms  ratio (range)      MB in-tree  MB ours")
    for size in SIZES:
        row = compare(in_tree, ours, size, pairs=5 if args.quick else 25)
        figures["{}x{}".format(*size)] = row
        print(
            "{:>4}x{:<6}".format(*size),
            f"{row['in_tree_ms']:>10.1f} {row['ours_ms']:>8.1f}",
            f" {row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})",
            f"{row['in_tree_mb']:>14.1f} {row['ours_mb']:>8.1f}",
        )
    if args.json:
        print(json.dumps(figures))


def compare(in_tree, ours, size: tuple[int, int], pairs: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
    times: tuple[list[float], list[float]] = ([], [])
    bytes_out = [0, 0]
    for pair in range(pairs + 1):  # the first pair warms up
        for side, processor in enumerate((in_tree, ours)):
            start = time.perf_counter()
            pixels = processor(images=picture)["pixel_values_flat"]
            seconds = time.perf_counter() - start
            bytes_out[side] = pixels.nbytes
            if pair:
                times[side].append(seconds)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return {
        "in_tree_ms": statistics.median(times[0]) * 1000,
        "ours_ms": statistics.median(times[1]) * 1000,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "in_tree_mb": bytes_out[0] / 1e6,
        "ours_mb": bytes_out[1] / 1e6,
    }


if __name__ == "__main__":
    main()
