# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl inspect``: what a checkpoint will take, from its headers alone.

Reads the configuration and the headers of the safetensors files, locally or
from the hub; no weights.
"""

import argparse
import contextlib
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from ....model_executor.models.nemotron_vl_layout import (
    checkpoint_tensors,
    head_size,
    indivisible,
    is_quantised,
)
from ....transformers_utils.configs.nemotron_vl_checks import (
    check_servable,
    check_sizes,
)
from ....transformers_utils.configs.nemotron_vl_plain import plain_config
from .checkpoint_files import read_headers, read_json
from .inspect_adapter import inspect_adapter
from .sizing import (
    PARTS,
    compare,
    has_fp8_cache,
    measure,
    parameters_on_rank,
    share_on_rank,
)
from .tiler import MARKERS, Tiler

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="show what a checkpoint will take, without loading it",
        description="Reads config.json and the headers of the safetensors files. "
        "Prints parameters and bytes of each part on each rank, the bytes of the KV "
        "cache, what pictures take, and what is wrong with the checkpoint. Exits "
        "with 1 if something is.",
    )
    parser.add_argument("model", help="folder or name on the hub")
    parser.add_argument("--tp", type=_positive, default=1, metavar="N", help="ranks")
    parser.add_argument(
        "--mm-encoder-tp-mode",
        choices=("weights", "data"),
        default="weights",
        help="with data each rank has the whole tower (default: weights)",
    )
    parser.add_argument(
        "--dtype", choices=_BYTES, help="of the engine (default: the checkpoint's)"
    )
    parser.add_argument(
        "--max-model-len", type=_positive, metavar="N", help="context in tokens"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FOLDER",
        help="check an adapter, too (PEFT's format; may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    found = inspect(
        args.model,
        tp=args.tp,
        encoder_data_parallel=args.mm_encoder_tp_mode == "data",
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        adapters=args.lora,
    )
    print(json.dumps(found, indent=2) if args.json else _describe(found))
    return 1 if found["problems"] else 0


def inspect(
    model: str,
    *,
    tp: int = 1,
    encoder_data_parallel: bool = False,
    dtype: str | None = None,
    max_model_len: int | None = None,
    adapters: Sequence[str] = (),
) -> dict[str, Any]:
    """What a checkpoint holds and what an engine takes for it.

    Args:
        model: Folder or name on the hub.
        tp: Ranks of tensor parallel.
        encoder_data_parallel: Each rank has the whole tower and connector.
        dtype: Type of the engine's weights and KV cache.
        max_model_len: Context in tokens; the checkpoint's by default.
        adapters: Folders of LoRA adapters in PEFT's format.

    Returns:
        ``parts`` with ``parameters`` and ``bytes`` as stored and
        ``rank_parameters`` and ``rank_bytes`` as loaded (before a kernel packs
        them); ``kv_bytes_per_token`` of a rank; what pictures take;
        ``adapters``; ``problems``, sentences. The scales and zero points of a
        quantised checkpoint count as bytes only.

    Raises:
        OSError: A file is missing.
        ValueError: ``config.json`` is not of this model type or has sizes that
            no model has; a safetensors file is damaged.
    """
    raw = read_json(model, "config.json")
    config = plain_config(raw)
    check_sizes(config)
    llm = config.llm_config
    headers = read_headers(model)
    if not is_quantised(config):
        with contextlib.suppress(OSError):  # ModelOpt's own file
            config.quantization_config = read_json(model, "hf_quant_config.json")
    quantised = is_quantised(config) or is_quantised(llm)
    known = checkpoint_tensors(config)
    problems = compare(headers, known, quantised)
    try:
        check_servable(config, read_json(model, "preprocessor_config.json"))
    except ValueError as error:
        problems.append(str(error))
    problems += indivisible(config, tp, encoder_data_parallel)

    dtype = dtype or str(raw.get("torch_dtype") or raw.get("dtype") or "bfloat16")
    size = _BYTES.get(dtype, 2)
    on_rank = partial(
        parameters_on_rank,
        config=config,
        tp=tp,
        encoder_data_parallel=encoder_data_parallel,
    )
    share = partial(share_on_rank, config=config, tp=tp, on_rank=on_rank)
    parts = {}
    for part, prefix in PARTS.items():
        mine = {name: h for name, h in headers.items() if name.startswith(prefix)}
        parts[part] = measure(mine, known, quantised, size, on_rank, share)

    tiler = Tiler.from_model(model)
    tile_tokens = tiler.tokens_per_tile
    tiles = tiler.max_tiles + (tiler.use_thumbnail and tiler.max_tiles > 1)
    picture_tokens = tiles * tile_tokens + MARKERS
    picture_bytes = tiles * 3 * config.force_image_size**2
    context = max_model_len or llm.max_position_embeddings
    if context > llm.max_position_embeddings:
        problems.append(
            f"--max-model-len {context} is more than the checkpoint's context of "
            f"{llm.max_position_embeddings} tokens."
        )
    kv_heads = max(1, llm.num_key_value_heads // tp)
    kv_size = 1 if has_fp8_cache(config) else size
    kv_bytes = 2 * llm.num_hidden_layers * kv_heads * head_size(llm) * kv_size
    found_adapters = []
    for folder in adapters:
        found, wrong = inspect_adapter(folder, known)
        found_adapters.append(found)
        problems += wrong
    return {
        "model": model,
        "dtype": dtype,
        "tp": tp,
        "quantised": quantised,
        "parts": parts,
        "kv_bytes_per_token": kv_bytes,
        "context": context,
        "kv_bytes_of_context": kv_bytes * context,
        "tokens_per_tile": tile_tokens,
        "largest_picture": {
            "tiles": tiles,
            "tokens": picture_tokens,
            "bytes": picture_bytes,
        },
        "pictures_in_context": context // picture_tokens,
        "pictures_per_gib_of_processor_cache": 2**30 // picture_bytes,
        "tile_cache_bytes_per_tile": tile_tokens * llm.hidden_size * size,
        "adapters": found_adapters,
        "problems": problems,
    }


def _describe(found: dict[str, Any]) -> str:
    ranks = f"{found['tp']} rank(s)"
    lines = [
        f"{found['model']}: {found['dtype']}"
        + (", quantised" if found["quantised"] else "")
        + f", {ranks}",
        "",
        f"{'':<16}{'parameters':>16}{'stored':>12}{'on a rank':>16}{'bytes':>12}",
    ]
    total = dict.fromkeys(("parameters", "bytes", "rank_parameters", "rank_bytes"), 0)
    for name, part in found["parts"].items():
        total = {key: total[key] + part[key] for key in total}
        lines.append(_row(name, part))
    lines += [_row("all", total), ""]
    picture = found["largest_picture"]
    kv_tokens = found["kv_bytes_per_token"]
    lines += [
        f"KV cache on a rank: {kv_tokens:,} bytes a token, "
        f"{_size(found['kv_bytes_of_context'])} for {found['context']:,} tokens",
        f"Largest picture: {picture['tiles']} tiles of {found['tokens_per_tile']} "
        f"tokens, {picture['tokens']:,} tokens in the prompt, "
        f"{_size(picture['bytes'])} to the engine",
        f"Such pictures in the context: {found['pictures_in_context']}, in a GiB of "
        f"vLLM's processor cache: {found['pictures_per_gib_of_processor_cache']}",
        f"tile_cache_mb: {found['tile_cache_bytes_per_tile'] / 1e6:.2f} a tile",
    ]
    for adapter in found["adapters"]:
        flags = f"--max-lora-rank {adapter['rank']}"
        if adapter["needs_tower_connector_lora"]:
            flags += " --enable-tower-connector-lora"
        lines.append(
            f"Adapter {adapter['folder']}: {adapter['parameters']:,} parameters in "
            f"{adapter['layers']} layers, {_size(adapter['bytes'])}; {flags} or more"
        )
    return "\n".join(lines + [f"Problem: {text}" for text in found["problems"]])


def _row(name: str, part: dict[str, int]) -> str:
    return (
        f"{name:<16}{part['parameters']:>16,}{_size(part['bytes']):>12}"
        f"{part['rank_parameters']:>16,}{_size(part['rank_bytes']):>12}"
    )


def _size(num_bytes: float) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    for unit in ("kB", "MB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.2f} {unit}"
    return f"{num_bytes / 1000:.2f} GB"
