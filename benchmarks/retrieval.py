"""Measures how many pages a second are embedded, in-tree and by this package.

Two engines take turns with the same pages: vLLM's in-tree model of
`llama-nemotron-embed-vl-1b-v2`, and this package's. Each page is embedded alone and is
new to the engine, so no cache helps. The CPU time is that of this process and of the
engines' processes. It has three parts:

- "processing": a page becomes tiles, without an engine;
- "small model": pages embedded by a model so small that processing is most of the work;
- "published widths": the same with the published widths, of `--blocks` blocks each.
  A quick run leaves it out.

Weights are random. Pages are drawn text of 1275x1650 pixels, six tiles and a thumbnail
of 512 pixels. A ratio is in-tree's figure over ours: median and range of the rounds.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from options import make_parser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import psutil
from PIL import Image, ImageDraw, ImageFont
from timing import order, summarise
from vllm import LLM, ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, LlamaNemotronVLConfig
from vllm.model_executor.models.nemotron_vl import LlamaNemotronVLForEmbedding
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins

from nemotron_vl.checkpoints.random_retrieval import make_retrieval_checkpoint

PROMPT = "passage: <image> "
TILE = 512
# An architecture that this package does not replace.
IN_TREE = "InTreeLlamaNemotronVLModel"
SIDES = {"in-tree": {"architectures": [IN_TREE]}, "ours": {}}
PUBLISHED = {
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
    },
    "llm_config": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
}
# vLLM's executor without a worker process, which CPUs otherwise get.
EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
PAGES = 4  # of a call: the clock of other processes counts hundredths of a second


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has started."""
    here = psutil.Process()
    times = [one.cpu_times() for one in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


# Not in main(): the engines' processes import this file, and need the name, too.
ModelRegistry.register_model(
    IN_TREE, f"{LlamaNemotronVLForEmbedding.__module__}:LlamaNemotronVLForEmbedding"
)
MODELS_CONFIG_MAP[IN_TREE] = LlamaNemotronVLConfig

FIGURES = {"seconds": time.perf_counter, "CPU seconds": cpu_seconds}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int, default=1, help="of tower and Llama")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--dtype",
        default="auto",
        help="of both engines; without instructions for bfloat16, the checkpoint's, "
        "a CPU is slow at the published widths",
    )
    args = parser.parse_args()
    rounds = 3 if args.quick else args.rounds
    load_general_plugins()
    pages = draw_pages()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        make_retrieval_checkpoint(checkpoint, ranks=False, tile_size=TILE)
        figures["processing"] = measure(processors(checkpoint), pages, rounds)
        show("processing", figures["processing"])
        widths = {"small model": {}}
        if not args.quick:
            widths["published widths"] = {
                part: {**sizes, "num_hidden_layers": args.blocks}
                for part, sizes in PUBLISHED.items()
            }
        for name, sizes in widths.items():
            figures[name] = measure(
                engines(checkpoint, sizes, args.dtype), pages, rounds
            )
            show(name, figures[name])
    if args.json:
        print(json.dumps(figures))


def draw_pages() -> Iterator[Image.Image]:
    """Endlessly many pages of text, no two alike."""
    font = ImageFont.load_default(size=22)
    number = 0
    while True:
        page = Image.new("RGB", (1275, 1650), "white")
        draw = ImageDraw.Draw(page)
        for line in range(48):
            number += 1
            words = " ".join(f"{number * k % 99991:05d} item" for k in range(1, 10))
            draw.text((90, 80 + 32 * line), words, "black", font)
        yield page


def processors(checkpoint: Path) -> dict[str, Callable[[Image.Image], object]]:
    def make(side: str) -> Callable[[Image.Image], object]:
        options = EngineArgs(str(checkpoint), hf_overrides=SIDES[side])
        processor = MULTIMODAL_REGISTRY.create_processor(options.create_model_config())

        def process(page: Image.Image) -> None:
            items = processor.info.parse_mm_data({"image": [page]})
            processor(PROMPT, items, hf_processor_mm_kwargs={})

        return process

    return {side: make(side) for side in SIDES}


def engines(
    checkpoint: Path, sizes: dict, dtype: str
) -> dict[str, Callable[[Image.Image], object]]:
    def make(side: str) -> Callable[[Image.Image], object]:
        llm = LLM(
            str(checkpoint),
            hf_overrides={**SIDES[side], **sizes},
            load_format="dummy" if sizes else "auto",
            dtype=dtype,
            distributed_executor_backend=EXECUTOR,
            enforce_eager=True,
            max_model_len=4096,
            max_num_seqs=1,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            limit_mm_per_prompt={"image": 1},
        )

        def embed(page: Image.Image) -> None:
            prompt = {"prompt": PROMPT, "multi_modal_data": {"image": page}}
            llm.embed(prompt, use_tqdm=False)

        return embed

    return {side: make(side) for side in SIDES}


def measure(
    calls: dict[str, Callable[[Image.Image], object]],
    pages: Iterator[Image.Image],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """What a page costs each side, after a round to warm up."""
    taken: dict[str, dict[str, list[float]]] = {
        figure: {side: [] for side in calls} for figure in FIGURES
    }
    for number in range(rounds + 1):
        batch = list(islice(pages, PAGES))
        for side in order(calls, number):
            before = {figure: clock() for figure, clock in FIGURES.items()}
            for page in batch:
                calls[side](page.copy())
            for figure, clock in FIGURES.items():
                if number:
                    taken[figure][side].append((clock() - before[figure]) / PAGES)
    found: dict[str, dict[str, float]] = {}
    for figure, sides in taken.items():
        ours = summarise(sides, "in-tree")["ours"]
        found[figure] = {side: statistics.median(v) for side, v in sides.items()}
        found[figure] |= {k: ours[k] for k in ("ratio", "ratio_min", "ratio_max")}
    return found


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    print(f"{name}: of a page, in-tree, ours (ratio, range)")
    for figure, row in found.items():
        print(
            f"{figure:>12}  {row['in-tree']:.3f}, {row['ours']:.3f} "
            f"({row['ratio']:.1f}x, {row['ratio_min']:.1f}-{row['ratio_max']:.1f})",
            flush=True,
        )
    seconds = found["seconds"]
    rates = ", ".join(f"{side} {1 / seconds[side]:.1f}" for side in SIDES)
    print(f"pages a second  {rates}\n", flush=True)


if __name__ == "__main__":
    main()
