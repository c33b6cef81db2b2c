# SPDX-License-Identifier: Apache-2.0
"""What the reference computes for each image, stage by stage, as files.

vLLM starts when the reference has left the memory: a GPU of 24 GB holds one of them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from .images import prompt
from .processes import run_elsewhere
from .reference import Reference

TOKENS = 16  # of an answer


def write_expected(
    checkpoint: Path,
    dtype: str,
    device: str,
    images: Mapping[str, Image.Image],
    folder: Path,
) -> None:
    """Run the reference and write ``0.safetensors``, ``1.safetensors`` and so on.

    A file holds for an image, of T tiles:

    - ``pixels``: uint8 ``(T, 3, size, size)``
    - ``conditioned``: the same, normalised
    - ``tower``: ``(T, patches, width)``
    - ``features``: ``(T, tokens, width of the language model)``
    - ``prompt``: token ids
    - ``logits``: float32 ``(TOKENS, vocabulary)``, of each token of the answer
    - ``tokens``: the answer, decoded greedily

    Args:
        checkpoint: Folder.
        dtype: Dtype of the reference, such as ``"bfloat16"``.
        device: PyTorch's name.
        images: RGB.
        folder: For the files.

    Raises:
        ValueError: The reference cannot load the checkpoint.
    """
    reference = Reference.load(checkpoint, getattr(torch, dtype), device)
    with torch.inference_mode():
        for number, image in enumerate(images.values()):
            stages = _stages(reference, image)
            save_file(stages, folder / f"{number}.safetensors")


def write_expected_elsewhere(*arguments, **options) -> None:
    """`write_expected` in a process of its own, whose memory is free afterwards."""
    run_elsewhere(write_expected, *arguments, **options)


def _stages(reference: Reference, image: Image.Image) -> dict[str, torch.Tensor]:
    pixels = reference.to_pixels(image).to(reference.device)
    stages = {"pixels": pixels, "conditioned": reference.condition(pixels)}
    parts = stages["conditioned"].split(1)  # bounds the memory
    stages["tower"] = torch.cat([reference.tower(part) for part in parts])
    stages["features"] = reference.connect(stages["tower"])
    ids, embeds = reference.embed(prompt(), [image])
    tokens, stages["logits"] = reference.decode(embeds, TOKENS)
    stages["prompt"] = torch.tensor(ids)
    stages["tokens"] = torch.tensor(tokens)
    return {name: tensor.contiguous().cpu() for name, tensor in stages.items()}
