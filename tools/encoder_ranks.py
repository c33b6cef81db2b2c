#!/usr/bin/env python3
"""Prints the table of docs/scaling.md: the published encoder on several GPUs, computed.

    python tools/encoder_ranks.py

Both modes compute at the same share of a GPU's peak, rings exchange at the full rate of
a link, and nothing overlaps. The time to launch kernels is left out.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import sizing_table
from capacity.data import read_data
from capacity.engine import Assumptions
from capacity.work import work_of_page
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import num_prefix_tokens
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig

GPU = "H100"
LINKS = {"NVLink": 450e9, "PCIe": 50e9}  # bytes a second in one direction
TILES = (1, 13, 16)
RANKS = (2, 4, 8)
BYTES = 2  # bfloat16


def published() -> NemotronVLConfig:
    """The configuration of the published sizes."""
    with tempfile.TemporaryDirectory() as folder:
        sizing_table.write_checkpoint(Path(folder, "made"), "bfloat16")
        values = json.loads(Path(folder, "made", "config.json").read_text())
    return NemotronVLConfig.from_dict(values)


def reduced(config: Any, tiles: int) -> list[int]:
    """Bytes of each tensor that tensor parallel sums over the ranks.

    The outputs of attention and MLP in each block, and the connector's.
    """
    vision = config.vision_config
    patches = (config.force_image_size // vision.patch_size) ** 2
    rows = tiles * (patches + num_prefix_tokens(vision))
    blocks = 2 * vision.num_hidden_layers * [rows * vision.hidden_size * BYTES]
    return [*blocks, embeddings(config, tiles)]


def gathered(config: Any, tiles: int, ranks: int) -> int:
    """Bytes of one rank's embeddings, which data parallel gathers at the end."""
    return embeddings(config, math.ceil(tiles / ranks))


def embeddings(config: Any, tiles: int) -> int:
    return work_of_page(config, tiles, 0, 0).embedding_bytes


def row(config: Any, tiles: int, ranks: int) -> list[str]:
    """Cells of the table: times in ms, what each rank sends in MB."""
    _, gpus = read_data()
    work = work_of_page(config, 1, 0, 0)
    operations = work.tower + work.connector  # of a tile
    tile_ms = operations / (Assumptions().compute_share * gpus[GPU].bf16 * 1e12) * 1e3
    others = ranks - 1
    cells = [f"{tiles}", f"{ranks}", f"{tiles * tile_ms:.1f}"]
    for of_rank, sent in (
        # A ring sums in two rounds over the ranks' parts of a tensor.
        (tiles / ranks, 2 * others / ranks * sum(reduced(config, tiles))),
        (math.ceil(tiles / ranks), others * gathered(config, tiles, ranks)),
    ):
        times = [of_rank * tile_ms + 1e3 * sent / rate for rate in LINKS.values()]
        cells += [f"{sent / 1e6:,.0f}", *(f"{time:.1f}" for time in times)]
    return cells


def table() -> str:
    config = published()
    head = ["tiles", "ranks", "one rank [ms]"]
    for mode in ("tensor", "data"):
        head += [f"{mode}: sent [MB]", *(f"{link} [ms]" for link in LINKS)]
    rows = [row(config, tiles, ranks) for tiles in TILES for ranks in RANKS]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
