# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl make-checkpoint``: the real layout with random weights.

Configuration keys, tensor names, special tokens and prompt format are those of
``nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1``, or with ``--kind embed`` and ``--kind
rerank`` those of the two models that find and rank pages. You choose the sizes. The
weights are random, so everything can be tried with it, but its answers mean nothing.
"""

import argparse
import math
from functools import partial
from pathlib import Path

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import checkpoint_tensors
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_towers import TOWER_DIMS
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import MAX_TILES

from ..printable import show
from .arguments import number

# Options for all kinds; the others are for chat models.
_FOR_ALL = {"out", "run", "kind", "tile_size", "dtype", "seed"}
_TOWERS = [name.removesuffix("_patch16_224") for name in TOWER_DIMS]


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "make-checkpoint",
        help="write a checkpoint with the real layout and random weights",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--kind", choices=["chat", "embed", "rerank"], default="chat")
    parser.add_argument("--tower", choices=_TOWERS, default="vit_small")
    parser.add_argument("--tower-layers", type=number(), metavar="N", default=2)
    parser.add_argument("--layers", type=number(), metavar="N", default=2)
    parser.add_argument("--hidden-size", type=number(), metavar="N", default=256)
    parser.add_argument("--intermediate-size", type=number(), metavar="N", default=512)
    parser.add_argument("--heads", type=number(), metavar="N", default=4)
    parser.add_argument("--kv-heads", type=number(), metavar="N", default=2)
    parser.add_argument(
        "--projector-hidden-size", type=number(), metavar="N", default=256
    )
    parser.add_argument("--tile-size", type=number(), metavar="PIXELS", default=64)
    parser.add_argument("--cpe-max-size", type=number(), metavar="PIXELS", default=256)
    parser.add_argument("--max-tiles", type=number(MAX_TILES), metavar="N", default=12)
    parser.add_argument("--context", type=number(), metavar="TOKENS", default=16384)
    parser.add_argument("--ps-version", choices=["v1", "v2"], default="v2")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from ..checkpoints.random_checkpoint import make_checkpoint
    from ..checkpoints.random_retrieval import make_retrieval_checkpoint

    chat = {k: v for k, v in vars(args).items() if k not in _FOR_ALL}
    options = {"tile_size": args.tile_size, "dtype": args.dtype, "seed": args.seed}
    if args.kind == "chat":
        tensors = checkpoint_tensors(make_checkpoint(args.out, **chat, **options))
    else:
        for name in (k for k, v in chat.items() if v != parser.get_default(k)):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for --kind chat only. Leave it out.")
        ranks = args.kind == "rerank"
        tensors = make_retrieval_checkpoint(args.out, ranks=ranks, **options)
    count = sum(math.prod(shape) for shape in tensors.values())
    show(f"{args.out}: {len(tensors)} tensors, {count / 1e6:.1f} M parameters")
    return 0
