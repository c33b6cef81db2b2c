# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl inspect``: what a checkpoint will take, from its headers alone.

Reads the configuration and the headers of the safetensors files, locally or
from the hub; no weights.
"""

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ....model_executor.models.nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    IGNORED_SUFFIXES,
    TOWER,
    Shape,
    checkpoint_tensors,
    head_size,
    indivisible,
    is_quantised,
    quantised_weight,
)
from .inspect_adapter import inspect_adapter
from .safetensors_headers import Header, read_headers
from .tiles import MARKERS, Tiler, read_json

PARTS = {
    "vision tower": "vision_model.",
    "connector": "mlp1.",
    "language model": "language_model.",
}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_FLOATS = ("F64", "F32", "F16", "BF16")

# vLLM pads the vocabulary to a multiple of this before it is shared out.
_VOCABULARY_UNIT = 64

# Layers whose outputs, and whose inputs, tensor parallel divides.
_BY_OUTPUT = ("attn.qkv", "mlp.fc1", "mlp1.1", "q_proj", "gate_proj", "up_proj")
_BY_INPUT = ("attn.proj", "mlp.fc2", "mlp1.3", "o_proj", "down_proj")


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
    from ....transformers_utils.config import (
        NemotronVLConfig,
        check_servable,
        check_sizes,
    )

    raw = read_json(model, "config.json")
    config = NemotronVLConfig.from_dict(raw)
    check_sizes(config)
    llm = config.llm_config
    headers = _read_headers(model)
    if not is_quantised(config):
        with contextlib.suppress(OSError):  # ModelOpt's own file
            config.quantization_config = read_json(model, "hf_quant_config.json")
    quantised = is_quantised(config) or is_quantised(llm)
    known = checkpoint_tensors(config)
    problems = _compare(headers, known, quantised)
    try:
        check_servable(config, read_json(model, "preprocessor_config.json"))
    except ValueError as error:
        problems.append(str(error))
    problems += indivisible(config, tp, encoder_data_parallel)

    dtype = dtype or str(raw.get("torch_dtype") or raw.get("dtype") or "bfloat16")
    size = _BYTES.get(dtype, 2)
    on_rank = partial(
        _on_rank, config=config, tp=tp, encoder_data_parallel=encoder_data_parallel
    )
    share = partial(_quantised_share, config=config, tp=tp, on_rank=on_rank)
    parts = {}
    for part, prefix in PARTS.items():
        mine = {name: h for name, h in headers.items() if name.startswith(prefix)}
        parts[part] = _measure(mine, known, quantised, size, on_rank, share)

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
    kv_size = 1 if _has_fp8_cache(config) else size
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


def _read_headers(model: str) -> dict[str, Header]:
    if Path(model).is_dir():
        return read_headers(Path(model))
    from huggingface_hub import get_safetensors_metadata

    files = get_safetensors_metadata(model).files_metadata.values()
    return {
        name: Header(tuple(info.shape), info.dtype)
        for file in files
        for name, info in file.tensors.items()
    }


def _compare(
    headers: Mapping[str, Header], required: dict[str, Shape], quantised: bool
) -> list[str]:
    """Sentences about tensors that are missing, unknown or misshapen."""
    problems = []
    known = required | CONDITIONER_TENSORS
    part_of = _part_of(headers, known, quantised)
    there = {*headers, *part_of.values()}
    if missing := [name for name in required if name not in there]:
        problems.append(f"{len(missing)} tensors are missing: {_some(missing)}.")
    unknown = [
        name
        for name in headers
        if name not in known
        and name not in part_of
        and not name.endswith(IGNORED_SUFFIXES)
    ]
    if unknown:
        problems.append(f"{len(unknown)} tensors are not known: {_some(unknown)}.")
    for name, header in headers.items():
        if quantised and header.dtype not in _FLOATS:
            continue
        if name in known and math.prod(header.shape) != math.prod(known[name]):
            problems.append(
                f"{name} has the shape {header.shape}, config.json implies "
                f"{known[name]}."
            )
    return problems


def _measure(
    headers: Mapping[str, Header],
    known: Mapping[str, Shape],
    quantised: bool,
    size: int,
    on_rank: Callable[[str, Shape], int],
    share: Callable[[str, Shape], float],
) -> dict[str, int]:
    """Parameters and bytes of tensors, as stored and as loaded on a rank.

    Args:
        headers: Of the tensors.
        known: The tensors of the unquantised checkpoint.
        quantised: Whether some of them are parts of quantised layers.
        size: Bytes of a value that is loaded unquantised.
        on_rank: Parameters of a tensor as loaded.
        share: Of the bytes of a quantised layer's tensor, that is loaded.
    """
    part_of = {n: w for n, w in _part_of(headers, known, quantised).items() if w}
    # Layers by what they would be unquantised, everything else as it is.
    shapes = {n: known.get(n, h.shape) for n, h in headers.items() if n not in part_of}
    shapes |= {weight: known[weight] for weight in part_of.values()}
    loaded = {
        name: on_rank(name, shape)
        for name, shape in shapes.items()
        if name not in CONDITIONER_TENSORS and not name.endswith(IGNORED_SUFFIXES)
    }
    rank_bytes = 0
    for name, header in headers.items():
        if name in loaded and header.dtype in _FLOATS:
            rank_bytes += loaded[name] * size
        elif name in loaded or name in part_of:
            rank_bytes += int(header.num_bytes * share(name, header.shape))
    return {
        "parameters": sum(map(math.prod, shapes.values())),
        "bytes": sum(header.num_bytes for header in headers.values()),
        "rank_parameters": sum(loaded.values()),
        "rank_bytes": rank_bytes,
    }


def _part_of(
    headers: Iterable[str], known: Mapping[str, Shape], quantised: bool
) -> dict[str, str]:
    """Tensors of quantised layers and of the KV cache, see `quantised_weight`."""
    found = {name: quantised_weight(name, known) for name in headers if quantised}
    return {name: weight for name, weight in found.items() if weight is not None}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _on_rank(
    name: str, shape: Shape, config: Any, tp: int, encoder_data_parallel: bool
) -> int:
    """Parameters of a tensor as vLLM loads it on one of ``tp`` ranks."""
    llm, vision = config.llm_config, config.vision_config
    if name.endswith("pos_embed"):  # resized to a tile's grid when loaded
        side = config.force_image_size // vision.patch_size
        return side * side * shape[-1]
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        padded = math.ceil(shape[0] / _VOCABULARY_UNIT) * _VOCABULARY_UNIT
        return padded // tp * shape[1]
    size = math.prod(shape)
    if not name.startswith("language_model.") and encoder_data_parallel:
        return size
    if name.startswith(TOWER) and ".attn." in name and vision.num_attention_heads % tp:
        return size  # vLLM gives each rank all heads then
    layer, _, kind = name.rpartition(".")
    if layer.endswith(("k_proj", "v_proj")):
        kv_heads = llm.num_key_value_heads
        return size // kv_heads * max(1, kv_heads // tp)
    if layer.endswith(_BY_OUTPUT) or (layer.endswith(_BY_INPUT) and kind == "weight"):
        return size // tp
    return size


def _quantised_share(
    name: str, shape: Shape, config: Any, tp: int, on_rank: Callable[[str, Shape], int]
) -> float:
    """Share of a quantised layer's tensor that one of ``tp`` ranks has."""
    layer = name.rpartition(".")[0]
    if name.endswith(".g_idx") and not _quantisation(config).get("desc_act"):
        return 0  # the order of the groups is the inputs'
    if math.prod(shape) == 1:
        return 1  # one scale for the layer
    if layer.endswith(_BY_INPUT) and 1 in (shape[0], shape[-1]):
        return 1  # scales of the outputs, which are not divided
    weight = f"{layer}.weight"
    units = 1 << 20  # any size that the ranks divide
    if layer.endswith(("k_proj", "v_proj")):
        units = config.llm_config.num_key_value_heads
    units *= tp
    return on_rank(weight, (units,)) / units


def _quantisation(config: Any) -> dict[str, Any]:
    """The quantisation of the whole checkpoint or of its language model."""
    for part in (config, config.llm_config):
        if is_quantised(part):
            found = part.quantization_config
            return found.get("quantization", found)  # ModelOpt's own file nests it
    return {}


def _has_fp8_cache(config: Any) -> bool:
    """Whether the checkpoint asks for a KV cache of 8 bits."""
    found = _quantisation(config)
    if (found.get("kv_cache_scheme") or {}).get("num_bits") == 8:
        return True
    return str(found.get("kv_cache_quant_algo")).upper() == "FP8"


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
