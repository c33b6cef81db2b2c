"""Compares the vision tower on two ranks with one rank; each rank has one core.

"data" divides the tiles among the ranks (--mm-encoder-tp-mode data), "weights" the
heads and the MLPs (vLLM's default). For "one rank", one rank encodes all tiles while
the other waits. The two processes run all sides in turns on the same tiles. The
connector is included. A ratio is a side's time over that of one rank, as median and
range of the rounds; 0.5 is perfect.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from options import make_parser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# The root is first: `tests/nemotron_vl` would hide the package.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("", "tests")]

import torch
import torch.multiprocessing
from vllm.config import set_current_vllm_config

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint

RANKS = 2
BASELINE = "one rank"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tower", default="vit_huge")
    parser.add_argument("--blocks", type=int, default=1, help="blocks of the tower")
    parser.add_argument("--tiles", type=int, nargs="+", default=[2, 5, 13])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < RANKS:
        sys.exit(f"This needs {RANKS} cores, one for each rank.")
    tiles, rounds = ([4], 3) if args.quick else (args.tiles, 7)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in args.dtype:
            checkpoint = Path(folder, dtype)
            make_checkpoint(
                checkpoint / "checkpoint",
                tower=args.tower,
                tower_layers=args.blocks,
                tile_size=512,
                cpe_max_size=2048,
                dtype=dtype,
            )
            torch.multiprocessing.spawn(
                measure, (checkpoint, dtype, tiles, rounds, cores), nprocs=RANKS
            )
            times = json.loads((checkpoint / "times.json").read_text())
            for count, found in times.items():
                name = f"{count} tiles, {dtype}"
                figures[name] = print_ratios(f"{args.tower}, {name}", found)
    if args.json:
        print(json.dumps(figures))


def measure(
    rank: int,
    folder: Path,
    dtype: str,
    counts: list[int],
    rounds: int,
    cores: list[int],
) -> None:
    """Run all sides on one rank; rank 0 writes the seconds of each side."""
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    os.environ["VLLM_DIST_IDENT"] = folder.name  # names vLLM's shared memory
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    from support.loading import load, make_config

    models = {}
    for mode in ("data", "weights"):
        config = make_config(
            folder / "checkpoint",
            dtype,
            tensor_parallel_size=RANKS,
            mm_encoder_tp_mode=mode,
        )
        with set_current_vllm_config(config), torch.inference_mode():
            if not models:
                init_distributed_environment(
                    RANKS, rank, f"file://{folder}/ranks", rank, "gloo"
                )
                initialize_model_parallel(RANKS)
            models[mode] = load(config)
    torch.manual_seed(0)  # the same tiles on both ranks
    pixels = torch.randint(0, 256, (max(counts), 3, 512, 512), dtype=torch.uint8)
    whole = models["data"]  # each rank has a whole tower
    sides: dict[str, Callable] = {
        BASELINE: lambda tiles: whole._encode_tiles(tiles) if rank == 0 else None,
        **{mode: model.extract_feature for mode, model in models.items()},
    }
    times: dict[int, dict[str, list[float]]] = {}
    with set_current_vllm_config(config), torch.inference_mode():
        for count in counts:
            times[count] = {side: [] for side in sides}
            for turn in range(rounds + 1):
                for side, encode in sides.items():
                    torch.distributed.barrier()
                    start = time.perf_counter()
                    encode(pixels[:count])
                    elapsed = time.perf_counter() - start
                    if turn:  # turn 0 warms up
                        times[count][side].append(elapsed)
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(times))


def print_ratios(title: str, times: dict[str, list[float]]) -> dict[str, dict]:
    figures = {}
    print(f"\n{title}\n\n| side | ms | of one rank's time |\n|---|---|---|")
    for side, found in times.items():
        ratios = [a / b for a, b in zip(found, times[BASELINE], strict=True)]
        figures[side] = {
            "ms": 1000 * statistics.median(found),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
        print(
            "| {side} | {ms:.0f} | {ratio:.2f} ({least:.2f} to {most:.2f}) |".format(
                side=side, **figures[side]
            )
        )
    return figures


if __name__ == "__main__":
    main()
