# SPDX-License-Identifier: Apache-2.0
"""How many pages a second API servers, encoders and engines take.

A model on paper: operations and bytes follow from the checkpoint, the rates of a GPU
are shares of its published peaks, and the cost of the front end was measured. See
docs/capacity.md for what it leaves out.
"""

import dataclasses
from typing import Any

from nemotron_vl.checkpoints.files import read_json
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import read_config

from .data import FrontEnd, Gpu
from .engine import GB, Assumptions, make_engines
from .work import work_of_page

BASE64 = 4 / 3  # characters for a byte of a data URL


def saturation(
    report: dict[str, Any],
    gpu: Gpu,
    front_end: FrontEnd,
    assumed: Assumptions,
    tiles: int | None = None,
) -> dict[str, Any]:
    """What a page takes, and how many pages a second.

    Args:
        report: What `inspection.inspect` returns for the checkpoint.
        gpu: The kind of GPU.
        front_end: Costs of the API server.
        assumed: What else is assumed.
        tiles: Tiles of a page (default: of the largest image).

    Returns:
        ``page`` with operations and bytes of a page; ``most_pages``, pages a second
        at which one unit of each layer saturates.

    Raises:
        ValueError: The context is too short for a page and its answer, or as of
            `make_engines`.
    """
    config = read_config(read_json(report["model"], "config.json"))
    tiles = tiles or report["largest_image"]["tiles"]
    work = work_of_page(config, tiles, assumed.question_tokens, assumed.answer_tokens)
    needed = work.prompt_tokens + assumed.answer_tokens
    if needed > report["context"]:
        raise ValueError(
            f"Prompt and answer take {needed:,} tokens, the context is "
            f"{report['context']:,}."
        )
    engines = make_engines(work, report, gpu, assumed)
    request = BASE64 * front_end.request_bytes
    link = assumed.network_gbit * GB / 8
    return {
        "page": {
            "operations": work.total,
            **dataclasses.asdict(work),
            "request_bytes": request,
        },
        "most_pages": {
            "API server, in-tree": 1000 / front_end.in_tree_ms,
            "API server, ours": 1000 / front_end.ours_ms,
            "engine": engines.whole.most_pages,
            "encoder of its own": engines.encoder.most_pages,
            "engine without encoder": engines.language.most_pages,
            "link, requests": link / request,
            "link, uint8 tiles": link / work.tile_bytes,
            "link, embeddings": link / work.embedding_bytes,
            "link, float32 tiles": link / work.in_tree_tile_bytes,
        },
    }
