# SPDX-License-Identifier: Apache-2.0
"""Checks whether a LoRA adapter fits a checkpoint, from its headers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    LANGUAGE_MODEL,
    Shape,
)

from .files import headers_of_folder, read_object
from .sizes import BY_INPUT, BY_OUTPUT, ENCODER

_PREFIX = "base_model.model."
# Ends of the names of layers that vLLM applies adapters to.
_LAYERS = (*BY_OUTPUT, *BY_INPUT, "k_proj", "v_proj", "embed_tokens", "lm_head")
# Ends of the names of an adapter's tensors. PEFT has other ones for embeddings.
_MATRICES = {
    "A.weight": "A",
    "B.weight": "B",
    "embedding_A": "A",
    "embedding_B": "B",
}
_SHOWN = 3  # messages about one adapter


def inspect_adapter(
    folder: str, known: Mapping[str, Shape]
) -> tuple[dict[str, Any], list[str]]:
    """Describe an adapter, and list what is wrong with it.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``,
            as PEFT writes them.
        known: The tensors of the checkpoint.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged.
    """
    config = read_object(Path(folder, "adapter_config.json"))
    headers = headers_of_folder(Path(folder))
    rank = config.get("r")
    problems = []
    layers = set()
    for name, header in headers.items():
        layer, _, matrix = name.removeprefix(_PREFIX).partition(".lora_")
        layers.add(layer)
        weight = known.get(f"{layer}.weight")
        # Adapters made for a Llama without the vision parts have shorter names.
        weight = weight or known.get(f"{LANGUAGE_MODEL}{layer}.weight")
        if weight is None or not layer.endswith(_LAYERS) or matrix not in _MATRICES:
            problems.append(
                f"adapter {folder}: {name} belongs to no layer that adapters apply to."
            )
            continue
        outputs, inputs = weight
        if matrix.startswith("embedding"):
            outputs, inputs = inputs, outputs
        expected = (rank, inputs) if _MATRICES[matrix] == "A" else (outputs, rank)
        if header.shape != expected:
            problems.append(
                f"adapter {folder}: {name} has the shape {header.shape}; the model "
                f"and rank {rank} imply {expected}."
            )
    found = {
        "folder": folder,
        "rank": rank,
        "layers": len(layers),
        "parameters": sum(math.prod(header.shape) for header in headers.values()),
        "bytes": sum(header.num_bytes for header in headers.values()),
        "needs_tower_connector_lora": any(
            layer.startswith(ENCODER) for layer in layers
        ),
    }
    more = len(problems) - _SHOWN
    if more > 0:
        problems[_SHOWN:] = [f"adapter {folder}: {more} more tensors do not fit."]
    return found, problems
