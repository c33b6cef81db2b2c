# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds and what an engine needs for it, from its headers.

Reads the configuration and the headers of the safetensors files, locally or
from the hub; no weights.
"""

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from vllm_nemotron_vl.config.nemotron_vl_cpu import has_native_products
from vllm_nemotron_vl.config.nemotron_vl_names import RETRIEVAL_MODEL_TYPES
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    checkpoint_tensors,
    head_size,
    is_any_quantised,
    is_quantised,
    tensor_parallel_problems,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_checks import (
    PS_VERSION_ASSUMED,
    check_image_tokens,
    check_servable,
    check_shape,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import read_config
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import most_tiles

from .adapters import inspect_adapter
from .files import Header, added_token_ids, check_folder, read_headers, read_json
from .published_facts import published_facts
from .sizes import (
    BYTES_OF_DTYPE,
    ENCODER,
    FLOATS,
    PARTS,
    compare,
    has_fp8_cache,
    measure,
    parameters_on_rank,
    share_on_rank,
)
from .tiler import MARKERS, Tiler


def inspect(
    model: str,
    *,
    tp: int = 1,
    encoder_data_parallel: bool = False,
    dtype: str | None = None,
    max_model_len: int | None = None,
    adapters: Sequence[str] = (),
) -> dict[str, Any]:
    """What a checkpoint contains and what an engine needs for it.

    Args:
        model: Folder or name on the hub.
        tp: Ranks of tensor parallel.
        encoder_data_parallel: Each rank has the whole tower and connector.
        dtype: Type of the engine's weights and KV cache.
        max_model_len: Context in tokens; the checkpoint's by default.
        adapters: Folders of LoRA adapters in PEFT's format.

    Returns:
        ``parts`` with ``parameters`` and ``bytes`` as stored, and with
        ``rank_parameters`` and ``rank_bytes`` as loaded on a rank (before a kernel
        packs them); ``kv_bytes_per_token`` on a rank; tiles, tokens and bytes of
        the largest image; ``facts`` that decide the answers, with what is assumed of
        the published checkpoint; ``adapters``; ``notes`` and ``problems``, lists of
        messages. The scales and zero points of a quantised checkpoint count as bytes
        only.

    Raises:
        OSError: A file is missing.
        ValueError: ``config.json`` is of another architecture or has sizes that
            no model has; a safetensors file is damaged; a file of the folder is not
            a regular one or is too large.
    """
    check_folder(model)
    raw = read_json(model, "config.json")
    for other, model_type in RETRIEVAL_MODEL_TYPES.items():
        if raw.get("model_type") == model_type:
            with contextlib.suppress(FileNotFoundError):
                read_headers(model)  # names a damaged file
            raise ValueError(
                f"{model} is of the architecture {other}. Only the chat model is "
                "inspected."
            )
    config = read_config(raw)
    check_shape(config)
    llm: Any = config.llm_config
    headers = read_headers(model)
    if not is_quantised(config):
        with contextlib.suppress(OSError):  # ModelOpt writes a file of its own
            config.quantization_config = read_json(model, "hf_quant_config.json")
    quantised = is_any_quantised(config)
    known = checkpoint_tensors(config)
    problems = compare(headers, known, quantised)
    try:
        check_servable(config, read_json(model, "preprocessor_config.json"))
    except ValueError as error:
        problems.append(str(error))
    ids, token_problems = _added_tokens(model, llm.vocab_size)
    problems += token_problems
    problems += _damaged(model, ("generation_config.json", "tokenizer_config.json"))
    problems += tensor_parallel_problems(config, tp, encoder_data_parallel)

    dtype = dtype or str(raw.get("torch_dtype") or raw.get("dtype") or "bfloat16")
    size = BYTES_OF_DTYPE.get(dtype, 2)
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
    tiles = most_tiles(
        {"max_dynamic_patch": tiler.max_tiles, "use_thumbnail": tiler.use_thumbnail}
    )
    image_tokens = tiles * tile_tokens + MARKERS
    image_bytes = tiles * 3 * config.force_image_size**2
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
        "largest_image": {
            "tiles": tiles,
            "tokens": image_tokens,
            "bytes": image_bytes,
        },
        "images_in_context": context // image_tokens,
        "images_per_gib_of_processor_cache": 2**30 // image_bytes,
        "tile_cache_bytes_per_tile": tile_tokens * llm.hidden_size * size,
        "facts": [
            fact._asdict() for fact in published_facts(model, config, headers, ids)
        ],
        "adapters": found_adapters,
        "notes": [
            *_notes(parts, dtype, headers),
            *([PS_VERSION_ASSUMED] if "ps_version" not in raw else []),
        ],
        "problems": problems,
    }


def _damaged(model: str, names: Iterable[str]) -> list[str]:
    """Messages about optional files that cannot be read."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):  # it is missing
            try:
                read_json(model, name)
            except ValueError as error:
                found.append(str(error))
    return found


def _added_tokens(model: str, vocab_size: int) -> tuple[dict[str, int], list[str]]:
    """Ids of the tokens that the tokenizer adds, and messages about those of images.

    A checkpoint without ``tokenizer.json`` has none of either.
    """
    ids: dict[str, int] = {}
    try:
        ids = added_token_ids(model)
        check_image_tokens(ids, vocab_size)
    except OSError:
        pass
    except ValueError as error:
        return ids, [str(error)]
    return ids, []


def _notes(parts: dict[str, Any], dtype: str, headers: dict[str, Header]) -> list[str]:
    """What differs on this machine's CPU."""
    quantised = any(
        header.dtype not in FLOATS and name.startswith(ENCODER)
        for name, header in headers.items()
    )
    if quantised or has_native_products(dtype):
        return []
    encoder = parts["vision tower"], parts["connector"]
    size = sum(part["rank_parameters"] for part in encoder) * BYTES_OF_DTYPE["float32"]
    return [
        f"A CPU without {dtype} instructions, such as this one, keeps the tower and "
        f"the connector in float32: {size:,} bytes on a rank."
    ]
