# SPDX-License-Identifier: Apache-2.0
"""Images that a request passes as embeddings, or as their numbers of tiles alone.

An engine may get embeddings from another one through vLLM's EC connector (encoder
cache). A request to it then says how many tiles each image has, which is the size of
its placeholder, and the name under which the encoder published its embeddings: the
``uuid``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingFieldRole

EMBEDS = "image_embeds"
NUM_TILES = "image_num_patches"

# An encoder publishes the metadata, from which another engine sizes the placeholder.
EMBEDDING_FIELDS: Mapping[str, Mapping[str, EmbeddingFieldRole]] = {
    "image": {EMBEDS: "values", NUM_TILES: "metadata"}
}


def check_embeddings(item: torch.Tensor) -> None:
    """Refuse embeddings that are not finite: they would spoil a whole batch."""
    if not len(item):
        problem = "must have at least one row"
    elif not item.is_floating_point():
        problem = f"must be floating-point numbers, not {item.dtype}"
    elif not item.isfinite().all():
        problem = "must be finite numbers"
    else:
        return
    raise VLLMValidationError(f"{EMBEDS} {problem}.", parameter="image")


def images_encoded_elsewhere(
    data: Mapping[str, Any], most_tiles: int
) -> DictEmbeddingItems:
    """Images of which only the numbers of tiles are known.

    Args:
        data: ``image_num_patches``, one integer for each image.
        most_tiles: Tiles that the longest prompt has room for.

    Raises:
        VLLMValidationError: It has other fields, or a number is out of range.
    """
    if unknown := data.keys() - {NUM_TILES}:
        raise VLLMValidationError(
            f"Unknown fields {sorted(unknown)} of an image's embeddings; known are "
            f"{EMBEDS} and {NUM_TILES}.",
            parameter="image",
        )
    counts = _counts(data)
    if counts.is_floating_point() or not ((counts > 0) & (counts <= most_tiles)).all():
        raise VLLMValidationError(
            f"{NUM_TILES} must be whole numbers from 1 to {most_tiles}, which fit "
            "--max-model-len.",
            parameter="image",
        )
    return DictEmbeddingItems(
        {NUM_TILES: counts},
        modality="image",
        required_fields={NUM_TILES},
        fields_factory=lambda _: {
            NUM_TILES: MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        },
    )


def count_embedded(data: Mapping[str, Any]) -> int:
    """Number of images in such data."""
    return len(data[EMBEDS] if EMBEDS in data else _counts(data))


def _counts(data: Mapping[str, Any]) -> torch.Tensor:
    return torch.as_tensor(data.get(NUM_TILES, [])).flatten()


def check_names(prompt: Mapping[str, Any]) -> None:
    """Refuse images that come without pixels, embeddings or a name for them.

    Raises:
        VLLMValidationError: An image has no ``uuid``, or the prompt has settings of the
            image processor, from which vLLM would make another name.
    """
    data = (prompt.get("multi_modal_data") or {}).get("image")
    if not isinstance(data, Mapping) or EMBEDS in data:
        return
    names = (prompt.get("multi_modal_uuids") or {}).get("image") or [None]
    problem = ""
    if not all([names] if isinstance(names, str) else names):
        problem = "needs the uuid under which the encoder published its embeddings"
    elif prompt.get("mm_processor_kwargs"):
        problem = "takes no mm_processor_kwargs; send them to the encoder"
    if problem:
        raise VLLMValidationError(
            f"An image with {NUM_TILES} alone {problem}.", parameter="image"
        )
