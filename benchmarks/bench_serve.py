"""Runs `vllm bench serve` with random images: in-tree image processing, then ours.

Both sides are requests to one server, in turns, see serve.py. A ratio is ours over
in-tree of the same round, as median and range of the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from serve import OPTIONS, SIDES, add_plugin

from vllm_nemotron_vl.assets.nemotron_vl import tiny_checkpoint
from vllm_nemotron_vl.entrypoints.nemotron_vl.server import serving

# Height, width and frames of the images, and their shares.
IMAGES = "{(2200, 1700, 1): 0.5, (720, 1280, 1): 0.5}"
FIGURES = {
    "request_throughput": "images/s",
    "median_ttft_ms": "first token ms",
    "output_throughput": "tokens/s",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=tiny_checkpoint())
    parser.add_argument("--quick", action="store_true", help="take two minutes")
    parser.add_argument("--json", action="store_true", help="figures in the last line")
    args = parser.parse_args()
    rounds, requests = (1, 16) if args.quick else (3, 64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        add_plugin(folder)
        with serving(args.model, *OPTIONS, log=folder / "log") as url:
            bench(url, args.model, 4, SIDES["in-tree"], folder)  # warms up
            turns = [
                {
                    side: bench(url, args.model, requests, extra, folder)
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


def bench(url: str, model: str, requests: int, extra: dict, folder: Path) -> dict:
    """Figures of one run of vLLM's benchmark, all of whose requests must succeed."""
    result = folder / "result.json"
    command = [
        *(str(Path(sys.executable).with_name("vllm")), "bench", "serve"),
        *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", url, "--model", model),
        *("--dataset-name", "random-mm", "--num-prompts", str(requests)),
        *("--random-input-len", "16", "--random-output-len", "8"),
        *("--random-mm-base-items-per-request", "1"),
        *("--random-mm-limit-mm-per-prompt", '{"image": 1}'),
        *("--random-mm-bucket-config", IMAGES),
        *("--max-concurrency", "8", "--ignore-eos"),
        *("--extra-body", json.dumps(extra)),
        *("--save-result", "--result-filename", str(result)),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    figures = json.loads(result.read_text())
    if figures["completed"] != requests:
        raise SystemExit(f"{figures['completed']} of {requests} requests succeeded.")
    return figures


if __name__ == "__main__":
    main()
