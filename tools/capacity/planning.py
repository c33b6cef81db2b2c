# SPDX-License-Identifier: Apache-2.0
"""How many API servers, encoders and GPUs a load of pages takes.

A model on paper: operations and bytes follow from the checkpoint, the rates of a GPU
are shares of its published peaks, and the cost of the front end was measured. See
docs/capacity.md for what it leaves out.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from nemotron_vl.checkpoints.files import read_json
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import read_config

from .data import FrontEnd, Gpu
from .engine import GB, Assumptions, make_engines, within
from .work import work_of_page

BASE64 = 4 / 3  # characters for a byte of a data URL


def plan(
    report: dict[str, Any],
    pages: float,
    gpu: Gpu,
    front_end: FrontEnd,
    assumed: Assumptions,
    tiles: int | None = None,
) -> dict[str, Any]:
    """What a load takes.

    Args:
        report: What `inspection.inspect` returns for the checkpoint.
        pages: Pages a second.
        gpu: The kind of GPU.
        front_end: Costs of the API server.
        assumed: What else is assumed.
        tiles: Tiles of a page (default: of the largest image).

    Returns:
        ``page`` with operations and bytes of a page; ``most_pages``, pages a second
        at which one unit of each layer saturates; ``in_tree``, ``ours`` and ``split``
        (encoders on GPUs of their own) with the units that the load takes, how far
        they are used, the first token's p99 in seconds and bytes a second; the costs
        of the ``front_end``; and the ``assumptions``.

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
    servers = {"in_tree": front_end.in_tree_ms, "ours": front_end.ours_ms}
    tile_bytes = {"in_tree": work.in_tree_tile_bytes, "ours": work.tile_bytes}

    def units(most: float) -> int:
        return max(1, math.ceil(pages / (assumed.utilisation * most) - 1e-9))

    def layer(
        most: float, first_token: Callable[[float], float], gpus: int = 1
    ) -> dict[str, Any]:
        count = units(most)
        rate = pages / count
        return {"units": count * gpus, "used": rate / most, "p99": first_token(rate)}

    plans: dict[str, Any] = {}
    for side, ms in servers.items():
        seconds = ms / 1000
        api = layer(1 / seconds, partial(within, seconds))
        gpus = layer(engines.whole.most_pages, engines.whole.first_token, report["tp"])
        plans[side] = {
            "api_servers": api,
            "gpus": gpus,
            "first_token_p99": api["p99"] + gpus["p99"],
            "request_bytes_per_second": pages * request,
            "tile_bytes_per_second": pages * tile_bytes[side],
        }
    # Encoders and language models each have API servers, which process every page.
    api = plans["ours"]["api_servers"]
    encoders = layer(
        engines.encoder.most_pages, engines.encoder.first_token, report["tp"]
    )
    languages = layer(
        engines.language.most_pages, engines.language.first_token, report["tp"]
    )
    moved = work.embedding_bytes / link
    plans["split"] = {
        "api_servers": api | {"units": 2 * api["units"]},
        "encoders": encoders,
        "gpus": languages,
        "first_token_p99": 2 * api["p99"] + encoders["p99"] + moved + languages["p99"],
        "request_bytes_per_second": 2 * pages * request,
        "tile_bytes_per_second": 2 * pages * work.tile_bytes,
        "embedding_bytes_per_second": pages * work.embedding_bytes,
    }
    return {
        "pages_per_second": pages,
        "gpu": gpu.title,
        "page": {
            "tiles": tiles,
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
        **plans,
        "front_end": dataclasses.asdict(front_end),
        "assumptions": dataclasses.asdict(assumed),
    }
