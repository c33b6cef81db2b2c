"""Runs `vllm bench serve` with random images: in-tree image processing, then ours.

Both sides are requests to one server, in turns, see serve.py. A ratio is ours over
in-tree of the same round, as median and range of the rounds. The command runs in this
process, because a process of its own takes half a minute to import vLLM.
"""

import asyncio
import contextlib
import io
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import ModuleType

from options import make_parser
from serve import OPTIONS, SIDES, add_plugin
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.server import serving

COMMAND = "vllm.benchmarks.serve"  # `vllm bench serve`
# Height, width and frames of the images, and their shares.
IMAGES = "{(2200, 1700, 1): 0.5, (720, 1280, 1): 0.5}"
FIGURES = {
    "request_throughput": "images/s",
    "median_ttft_ms": "first token ms",
    "output_throughput": "tokens/s",
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=tiny_checkpoint())
    args = parser.parse_args()
    rounds, requests = (1, 16) if args.quick else (3, 64)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as pool:
        add_plugin(Path(name))
        loading = pool.submit(load)  # while the server starts
        with serving(args.model, *OPTIONS, log=Path(name, "log")) as url:
            command = loading.result()
            bench(command, url, args.model, 4, SIDES["in-tree"])  # warms up
            turns = [
                {
                    side: bench(command, url, args.model, requests, extra)
                    for side, extra in SIDES.items()
                }
                for _ in range(rounds)
            ]

    figures: dict = {"rounds": rounds, "requests": requests}
    print(f"{'':<10}{''.join(f'{title:>16}' for title in FIGURES.values())}")
    for side in SIDES:
        medians = [statistics.median(t[side][key] for t in turns) for key in FIGURES]
        figures[side] = dict(zip(FIGURES, medians, strict=True))
        print(f"{side:<10}{''.join(f'{median:>16.1f}' for median in medians)}")
    for key, title in FIGURES.items():
        ratios = [turn["ours"][key] / turn["in-tree"][key] for turn in turns]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        figures[key] = {"ratio": middle, "ratio_min": low, "ratio_max": high}
        print(f"{title}: {middle:.2f} ({low:.2f}-{high:.2f})")
    if args.json:
        print(json.dumps(figures))


def load() -> ModuleType:
    """vLLM's command, and the plugin, which `vllm` loads before any command."""
    load_general_plugins()
    return import_module(COMMAND)


def bench(
    command: ModuleType, url: str, model: str, requests: int, extra: dict
) -> dict:
    """Figures of one run of vLLM's benchmark, all of whose requests must succeed."""
    options = [
        *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", url, "--model", model),
        *("--dataset-name", "random-mm", "--num-prompts", str(requests)),
        *("--random-input-len", "16", "--random-output-len", "8"),
        *("--random-mm-base-items-per-request", "1"),
        *("--random-mm-limit-mm-per-prompt", '{"image": 1}'),
        *("--random-mm-bucket-config", IMAGES),
        *("--max-concurrency", "8", "--ignore-eos"),
        *("--extra-body", json.dumps(extra), "--disable-tqdm"),
    ]
    parser = FlexibleArgumentParser()
    command.add_cli_args(parser)
    with contextlib.redirect_stdout(io.StringIO()):
        figures = asyncio.run(command.main_async(parser.parse_args(options)))
    if figures["completed"] != requests:
        raise SystemExit(f"{figures['completed']} of {requests} requests succeeded.")
    return figures


if __name__ == "__main__":
    main()
