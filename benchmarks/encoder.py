"""Compares this package's vision tower with timm's and with vLLM's RadioModel.

timm's tower is the tests' reference. All sides run in one process, in turns, on the
same pixels. All blocks of a ViT are alike, so a few are measured. "products" are the
blocks' matrix products alone, with the same shapes: the most that the machine can do.
A ratio is timm's time over the side's, as median and range of the rounds. "of
products" is the share of a side's time that the products take. A title gives the
engine's type; where the CPU emulates products of it, our side computes in float32, and
a line says so. "decoder" is a layer of Llama-3.1-8B's MLP (4096 to 14336) with vLLM's
matrix product for CPUs.
"""

import copy
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from options import make_parser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# The root is first: `tests/nemotron_vl` would hide the package.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("", "tests")]

import torch
import torch.nn as nn
import torch.nn.functional as F
from timing import print_table, summarise, take_turns
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.models.radio import RadioModel
from vllm.utils.torch_utils import set_default_torch_dtype

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.reference import Reference
from nemotron_vl.verify.reference_tower import TOWERS
from support.loading import load, make_config
from vllm_nemotron_vl.config.nemotron_vl_cpu import has_native_products
from vllm_nemotron_vl.model_executor.models.nemotron_vl_precision import encoder_dtype

TILE, PATCH, PREFIX = 512, 16, 8
TOKENS = (TILE // PATCH) ** 2 + PREFIX
BASELINE = "timm"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int, default=1, help="blocks of the tower")
    args = parser.parse_args()
    emulated = not has_native_products("bfloat16")
    plan = Plan(args.blocks)
    if args.quick and emulated:  # a ViT-H block of timm takes ten seconds
        plan = Plan(args.blocks, 1, [1], ["vit_small"])
    elif args.quick:
        plan = Plan(args.blocks, 2, [1, 4], dtypes=["bfloat16"])
    elif emulated:
        plan = Plan(args.blocks, 3, [1])
    figures: dict[str, dict] = {}
    if args.quick:
        figures = measure_all(1, plan)
    for number in [] if args.quick else [1, 2]:
        # A new process each: vLLM's products keep the thread count of the first call.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            figures |= pool.submit(measure_all, number, plan).result()
    if args.json:
        print(json.dumps(figures))


class Plan(NamedTuple):
    """What to measure: sizes of towers, tile counts and types."""

    blocks: int
    rounds: int = 3
    counts: Sequence[int] = (1, 4, 13)
    towers: Sequence[str] = ("vit_huge", "vit_small")
    dtypes: Sequence[str] = ("bfloat16", "float32")


@torch.inference_mode()
def measure_all(threads: int, plan: Plan) -> dict[str, dict]:
    torch.set_num_threads(threads)
    figures = {}
    for tower in plan.towers:
        for name in plan.dtypes:
            dtype = getattr(torch, name)
            sides = make_sides(tower, dtype, plan.blocks)
            title = f"{tower}, {plan.blocks} block(s), {name}, {threads} thread(s)"
            figures[title] = measure(title, sides, dtype, plan.counts, plan.rounds)
            print(f"{'':>10}  ours computes in {encoder_dtype(dtype)}")
    title = f"decoder, {threads} thread(s)"
    figures[title] = {}
    for rows in (1, 64):
        calls = {name: decoder_layer(rows, name) for name in plan.dtypes}
        times = take_turns(calls, plan.rounds)
        figures[title][f"{rows} row(s)"] = summarise(times, plan.dtypes[0])
    print_table(f"{title} [ms]", figures[title], plan.dtypes[0])
    return figures


def decoder_layer(rows: int, name: str) -> Callable[[], torch.Tensor]:
    """Return a call of an MLP layer of the language model, as vLLM runs it on CPUs."""
    dtype = getattr(torch, name)
    layer = nn.Linear(4096, 14336, bias=False, dtype=dtype).requires_grad_(False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    x = torch.randn(rows, 4096).to(dtype)
    return lambda: layer.cpu_linear(x, layer.weight, None)


def measure(
    title: str, sides: dict[str, Callable], dtype: torch.dtype, counts, rounds: int
) -> dict[str, dict]:
    found = {}
    for count in counts:
        pixels = torch.randn(count, 3, TILE, TILE).to(dtype)
        calls = {side: partial(tower, pixels) for side, tower in sides.items()}
        row = summarise(take_turns(calls, rounds), BASELINE)
        for side in row.values():
            side["of_products"] = row["products"]["ms"] / side["ms"]
        found[f"{count} tile(s)"] = row
    print_table(f"{title} [ms]", found, BASELINE)
    for name, row in found.items():
        print(
            f"{name:>10}  of products: "
            + "  ".join(f"{s} {c['of_products']:.0%}" for s, c in row.items())
        )
    return found


def make_sides(tower: str, dtype: torch.dtype, blocks: int) -> dict[str, Callable]:
    """The sides: three towers of the same shape, and the products alone."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        make_checkpoint(
            checkpoint,
            tower=tower,
            tower_layers=blocks,
            tile_size=TILE,
            cpe_max_size=2048,
        )
        config = make_config(checkpoint, str(dtype).removeprefix("torch."))
        model = load(config)
        timm = Reference.load(checkpoint, dtype).tower
        plain = make_plain(config)
    width, _, heads = TOWERS[f"{tower}_patch16_224"]
    return {
        "timm": timm,
        "RadioModel": plain,
        "ours": partial(encode, model),
        "products": Products(width, heads, blocks, dtype),
    }


def encode(model, pixels: torch.Tensor) -> torch.Tensor:
    """Run our tower as the model does: a few tiles at once, in the tower's dtype."""
    parts = pixels.to(model.encoder_dtype).split(model.max_encoder_tiles)
    return torch.cat([model.vision_model(part) for part in parts]).to(model.dtype)


def make_plain(config: VllmConfig) -> RadioModel:
    """vLLM's unmodified tower with random weights."""
    vision = copy.deepcopy(config.model_config.hf_config.vision_config)
    with set_current_vllm_config(config):
        with set_default_torch_dtype(config.model_config.dtype):
            model = RadioModel(vision)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.02)
        process_weights_after_loading(model, config.model_config, torch.device("cpu"))
    return model.eval()


class Products:
    """The matrix products of all blocks and nothing else."""

    def __init__(self, width: int, heads: int, blocks: int, dtype: torch.dtype):
        self.heads, self.blocks = heads, blocks
        shapes = [(3 * width, width), (width, width), (4 * width, width)]
        shapes.append((width, 4 * width))
        self.weights = [torch.randn(shape).to(dtype) for shape in shapes]
        self.head = torch.randn(TOKENS, width // heads).to(dtype)
        self.scores = torch.randn(TOKENS, TOKENS).to(dtype)

    def __call__(self, pixels: torch.Tensor) -> None:
        rows = len(pixels) * TOKENS
        inputs = [self.scores.new_ones(rows, w.shape[1]) for w in self.weights]
        for _ in range(self.blocks):
            for x, weight in zip(inputs, self.weights, strict=True):
                F.linear(x, weight)
            for _ in range(len(pixels) * self.heads):
                self.head @ self.head.t()
                self.scores @ self.head


if __name__ == "__main__":
    main()
