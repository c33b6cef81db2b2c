# SPDX-License-Identifier: Apache-2.0
"""Random tensors of a checkpoint, drawn from a seed."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    Config,
    Shape,
    checkpoint_tensors,
)
from vllm_nemotron_vl.model_executor.models.nemotron_vl_retrieval_layout import SCORE

from .files import write_json

_SHARD_BYTES = 4 * 2**30


def write_weights(out: Path, config: Config, dtype: str, seed: int) -> None:
    """Write the tensors that a configuration implies, in files of bounded size.

    Args:
        out: Folder.
        config: The composite configuration.
        dtype: Type of the stored values, such as ``"bfloat16"``.
        seed: Seed of the values.

    Raises:
        OSError: A file cannot be written; names it.
    """
    statistics = {
        name: getattr(config.vision_config, name.rpartition(".")[2])
        for name in CONDITIONER_TENSORS
    }
    shapes = checkpoint_tensors(config) | CONDITIONER_TENSORS
    write_tensors(out, shapes, dtype, seed, statistics)


def write_tensors(
    out: Path,
    shapes: Mapping[str, Shape],
    dtype: str,
    seed: int,
    values: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> None:
    """Write random tensors, in files of bounded size.

    Args:
        out: Folder.
        shapes: Shapes of the tensors by their names.
        dtype: Type of the stored values, but for the head of a ranking model, which
            is stored in float32.
        seed: Seed of the values.
        values: Those of tensors that are not random.

    Raises:
        OSError: A file cannot be written; names it.
    """
    kind = getattr(torch, dtype)
    sizes = {name: torch.Size(s).numel() * kind.itemsize for name, s in shapes.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name in names:
            if name in values:
                drawn = torch.tensor(values[name]).reshape(shapes[name])
            else:
                drawn = _draw(name, shapes[name], seed)
            tensors[name] = drawn if name == SCORE else drawn.to(kind)
        try:
            save_file(tensors, out / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{out / file} cannot be written: {error}") from error
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        write_json(
            out / "model.safetensors.index.json",
            {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index},
        )


def _draw(name: str, shape: Shape, seed: int) -> torch.Tensor:
    """Values of one tensor. They depend only on its name and the seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:  # a bias, or the scale of a norm
        scale = "norm" in name or name == "mlp1.0.weight"
        return 0.02 * noise + (scale and name.endswith("weight"))
    return noise * shape[-1] ** -0.5
