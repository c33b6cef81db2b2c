# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl inspect``: what a checkpoint needs, from its headers alone."""

import argparse
import json
from typing import Any

from ..checkpoints.sizes import BYTES_OF_DTYPE
from ..printable import printable, show
from .arguments import number


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="show what a checkpoint needs, without loading it",
        description="Reads config.json and the headers of the safetensors files. "
        "Prints parameters and bytes of each part on each rank, the bytes of the KV "
        "cache, tiles and tokens of images, what decides the answers beside what is "
        "assumed of the published checkpoint, and what is wrong with the checkpoint. "
        "Exits with 1 if something is wrong.",
    )
    parser.add_argument("model", help="folder or name on the hub")
    parser.add_argument("--tp", type=number(), default=1, metavar="N", help="ranks")
    parser.add_argument(
        "--mm-encoder-tp-mode",
        choices=("weights", "data"),
        default="weights",
        help="data: each rank has the whole tower (default: weights)",
    )
    parser.add_argument(
        "--dtype",
        choices=BYTES_OF_DTYPE,
        help="of the engine (default: the checkpoint's)",
    )
    parser.add_argument(
        "--max-model-len", type=number(), metavar="N", help="context in tokens"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FOLDER",
        help="also check an adapter in PEFT's format (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..checkpoints.inspection import inspect

    found = inspect(
        args.model,
        tp=args.tp,
        encoder_data_parallel=args.mm_encoder_tp_mode == "data",
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        adapters=args.lora,
    )
    show(json.dumps(found, indent=2) if args.json else _describe(found))
    return 1 if found["problems"] else 0


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
    image = found["largest_image"]
    kv_tokens = found["kv_bytes_per_token"]
    context = _format_bytes(found["kv_bytes_of_context"])
    lines += [
        f"KV cache on a rank: {kv_tokens:,} bytes a token, {context} for "
        f"{found['context']:,} tokens",
        f"Largest image: {image['tiles']} tiles of {found['tokens_per_tile']} "
        f"tokens, {image['tokens']:,} tokens in the prompt, "
        f"{_format_bytes(image['bytes'])} to the engine",
        f"Such images in the context: {found['images_in_context']}, in a GiB of "
        f"vLLM's processor cache: {found['images_per_gib_of_processor_cache']}",
        f"tile_cache_mb: {found['tile_cache_bytes_per_tile'] / 1e6:.2f} a tile",
    ]
    lines += ["", *_describe_facts(found["facts"]), ""]
    for adapter in found["adapters"]:
        flags = f"--max-lora-rank {adapter['rank']}"
        if adapter["needs_tower_connector_lora"]:
            flags += " --enable-tower-connector-lora"
        lines.append(
            f"Adapter {adapter['folder']}: {adapter['parameters']:,} parameters in "
            f"{adapter['layers']} layers, {_format_bytes(adapter['bytes'])}; "
            f"{flags} or more"
        )
    lines += [f"Note: {text}" for text in found["notes"]]
    lines += [f"Problem: {text}" for text in found["problems"]]
    return "\n".join(map(printable, lines))


def _describe_facts(facts: list[dict[str, str]]) -> list[str]:
    """A table; ``*`` marks what is unlike the published checkpoint."""
    rows = [("what decides the answers", "this checkpoint", "published, as assumed")]
    for fact in facts:
        value, assumed = fact["value"], fact["assumed"]
        differs = " *" if assumed and value != assumed else ""
        rows.append((fact["name"], value + differs, assumed or "not known"))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in rows]


def _row(name: str, part: dict[str, int]) -> str:
    return (
        f"{name:<16}{part['parameters']:>16,}{_format_bytes(part['bytes']):>12}"
        f"{part['rank_parameters']:>16,}{_format_bytes(part['rank_bytes']):>12}"
    )


def _format_bytes(num_bytes: float) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    for unit in ("kB", "MB"):
        num_bytes /= 1000
        if num_bytes < 1000:
            return f"{num_bytes:.2f} {unit}"
    return f"{num_bytes / 1000:.2f} GB"
