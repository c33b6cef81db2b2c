"""Adapters that do not fit the model, made of one that does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from support.tiny import TOWER_WIDTH, WIDTH


def changed(
    source: Path,
    folder: Path,
    change: Callable[[dict], dict] = lambda tensors: tensors,
    **config,
) -> Path:
    """Copy an adapter with changed tensors or settings."""
    shutil.copytree(source, folder)
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **config}))
    return folder


def renamed(old: str, new: str):
    return lambda tensors: {k.replace(old, new): t for k, t in tensors.items()}


def of_a_wider_model(tensors: dict) -> dict:
    return {
        name: tensor.repeat(1, 2) if "lora_A" in name else tensor.repeat(2, 1)
        for name, tensor in tensors.items()
    }


# The adapter that is changed, the changes, and what the refusal contains
BAD = {
    "rank": ("language", dict(r=64), ["LoRA rank 64 is greater than max_lora_rank 8"]),
    "target": (
        "language",
        dict(change=renamed("layers.0.self_attn.q_proj", "layers.0.self_attn.x_proj")),
        ["language_model.model.layers.0.self_attn.x_proj' (not in the model)"],
    ),
    "deeper": (
        "language",
        dict(change=renamed("layers.0.", "layers.99.")),
        ["language_model.model.layers.99.self_attn.q_proj' (not in the model)"],
    ),
    "other connector": (
        "connector",
        dict(change=renamed("mlp1.", "mlp2.")),
        ["'mlp2.1' (not in the model)", "'mlp2.3' (not in the model)"],
    ),
    "wider": (
        "language",
        dict(change=of_a_wider_model),
        [f"{WIDTH}", f"{2 * WIDTH}"],
    ),
    "wider tower": (
        "tower",
        dict(change=of_a_wider_model),
        [f"{TOWER_WIDTH}", f"{2 * TOWER_WIDTH}"],
    ),
}
