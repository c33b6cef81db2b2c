# SPDX-License-Identifier: Apache-2.0
"""Parameters and bytes of tensors, as stored and as loaded on a rank."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    IGNORED_SUFFIXES,
    TOWER,
    Shape,
    is_quantised,
    quantised_weight,
    tensor_problem,
)

from .files import Header

PARTS = {
    "vision tower": "vision_model.",
    "connector": "mlp1.",
    "language model": "language_model.",
}
ENCODER = (PARTS["vision tower"], PARTS["connector"])

# Types that an engine may have, with the bytes of a value.
BYTES_OF_DTYPE = {"float32": 4, "float16": 2, "bfloat16": 2}

FLOATS = ("F64", "F32", "F16", "BF16")

# vLLM pads the vocabulary to a multiple of this before it is shared out.
_VOCABULARY_UNIT = 64

# Layers whose outputs, and whose inputs, tensor parallel divides.
BY_OUTPUT = ("attn.qkv", "mlp.fc1", "mlp1.1", "q_proj", "gate_proj", "up_proj")
BY_INPUT = ("attn.proj", "mlp.fc2", "mlp1.3", "o_proj", "down_proj")


def compare(
    headers: Mapping[str, Header], required: dict[str, Shape], quantised: bool
) -> list[str]:
    """Messages about tensors that are missing, unknown or of a wrong shape."""
    problems = []
    known = required | CONDITIONER_TENSORS
    part_of = _part_of(headers, known, quantised)
    there = {*headers, *part_of.values()}
    if missing := [name for name in required if name not in there]:
        problems.append(f"{len(missing)} tensors are missing: {_some(missing)}.")
    found = {
        name: tensor_problem(
            name, header.shape, _is_floating_point(header), known, quantised
        )
        for name, header in headers.items()
    }
    if unknown := [name for name in found if found[name] == "unknown"]:
        problems.append(f"{len(unknown)} tensors are not known: {_some(unknown)}.")
    problems += [
        f"{name} has the shape {headers[name].shape}, config.json implies "
        f"{known[name]}."
        for name in found
        if found[name] == "misshapen"
    ]
    return problems


def _is_floating_point(header: Header) -> bool:
    """Whether the values are floating-point numbers, also those of 8 bits."""
    return header.dtype in FLOATS or header.dtype.startswith("F8")


def measure(
    headers: Mapping[str, Header],
    known: Mapping[str, Shape],
    quantised: bool,
    size: int,
    on_rank: Callable[[str, Shape], int],
    share: Callable[[str, Shape], float],
) -> dict[str, int]:
    """Parameters and bytes of tensors, as stored and as loaded on a rank.

    Args:
        headers: Headers of the tensors.
        known: The tensors of the unquantised checkpoint.
        quantised: Whether some of them are parts of quantised layers.
        size: Bytes of a value that is loaded unquantised.
        on_rank: Parameters of a tensor as loaded.
        share: Share of a quantised layer's tensor that a rank loads.
    """
    part_of = {n: w for n, w in _part_of(headers, known, quantised).items() if w}
    # Quantised layers count with their unquantised shapes.
    shapes = {n: known.get(n, h.shape) for n, h in headers.items() if n not in part_of}
    shapes |= {weight: known[weight] for weight in part_of.values()}
    loaded = {
        name: on_rank(name, shape)
        for name, shape in shapes.items()
        if name not in CONDITIONER_TENSORS and not name.endswith(IGNORED_SUFFIXES)
    }
    rank_bytes = 0
    for name, header in headers.items():
        if name in loaded and header.dtype in FLOATS:
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


def parameters_on_rank(
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
        return size  # vLLM then gives all heads to each rank
    layer, _, kind = name.rpartition(".")
    if layer.endswith(("k_proj", "v_proj")):
        kv_heads = llm.num_key_value_heads
        return size // kv_heads * max(1, kv_heads // tp)
    if layer.endswith(BY_OUTPUT) or (layer.endswith(BY_INPUT) and kind == "weight"):
        return size // tp
    return size


def share_on_rank(
    name: str, shape: Shape, config: Any, tp: int, on_rank: Callable[[str, Shape], int]
) -> float:
    """Share of a quantised layer's tensor that one of ``tp`` ranks has."""
    layer = name.rpartition(".")[0]
    if name.endswith(".g_idx") and not _quantisation(config).get("desc_act"):
        return 0  # without desc_act the groups are in order, and vLLM drops g_idx
    if math.prod(shape) == 1:
        return 1  # one scale for the layer
    if layer.endswith(BY_INPUT) and 1 in (shape[0], shape[-1]):
        return 1  # scales of the outputs, which are not divided here
    weight = f"{layer}.weight"
    units = 1 << 20  # any number that the ranks divide
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


def has_fp8_cache(config: Any) -> bool:
    """Whether the checkpoint asks for a KV cache of 8 bits."""
    found = _quantisation(config)
    if (found.get("kv_cache_scheme") or {}).get("num_bits") == 8:
        return True
    return str(found.get("kv_cache_quant_algo")).upper() == "FP8"
