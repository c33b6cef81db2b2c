# SPDX-License-Identifier: Apache-2.0
"""Images that a request passes as embeddings, or as their numbers of tiles alone.

An engine may get embeddings from another one through vLLM's EC connector (encoder
cache). A request to it then says how many tiles each image has, which is the size of
its placeholder, and the name under which the encoder published its embeddings: the
``uuid``.
"""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingFieldRole

from .nemotron_vl_tensors import read_tensor

EMBEDS = "image_embeds"
NUM_TILES = "image_num_patches"

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# An encoder publishes the metadata, from which another engine sizes the placeholder.
EMBEDDING_FIELDS: Mapping[str, Mapping[str, EmbeddingFieldRole]] = {
    "image": {EMBEDS: "values", NUM_TILES: "metadata"}
}


_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def with_plain_embeddings(messages: list[Any]) -> list[Any]:
    """Messages of a chat whose tensors vLLM can load safely.

    vLLM loads them with `torch.load`. They are read here, and written again.

    Args:
        messages: As the client sent them; they are not changed.

    Raises:
        VLLMValidationError: A tensor cannot be read, or repeats its numbers.
    """
    return [
        {**message, "content": [_with_plain_embeddings(p) for p in message["content"]]}
        if has_embeddings([message])
        else message
        for message in messages
    ]


def has_embeddings(messages: list[Any]) -> bool:
    """Whether a chat has images as embeddings."""
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    parts = [part for c in contents if isinstance(c, list) for part in c]
    return any(isinstance(part, Mapping) and EMBEDS in part for part in parts)


def _with_plain_embeddings(part: Any) -> Any:
    if not isinstance(part, Mapping) or EMBEDS not in part:
        return part
    given = part[EMBEDS]
    if isinstance(given, Mapping):
        given = {name: _plain(value) for name, value in given.items()}
    return {**part, EMBEDS: _plain(given)}


def _plain(given: Any) -> Any:
    """The same tensor in base64, as `torch.save` writes it; no other value changes."""
    if not isinstance(given, str):
        return given
    try:
        tensor = read_tensor(base64.b64decode(given, validate=True))
    except ValueError as error:  # of either
        raise VLLMValidationError(
            f"{EMBEDS} cannot be read: {error}.", parameter="image"
        ) from error
    file = BytesIO()
    torch.save(tensor.contiguous(), file)
    return base64.b64encode(file.getbuffer()).decode()


def check_embeddings(item: torch.Tensor) -> None:
    """Refuse embeddings that are not finite: they would spoil a whole batch."""
    if not len(item):
        problem = "must have at least one row"
    elif item.dtype not in _FLOATS:
        problem = f"must be floating-point numbers, not {item.dtype}"
    elif item.numel() * item.element_size() > item.untyped_storage().nbytes():
        problem = "must not repeat numbers by a stride of 0"  # they may be gigabytes
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
    if not ((counts > 0) & (counts <= most_tiles)).all():
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
    """The numbers of tiles, int64 of shape ``(images,)``."""
    try:
        counts = torch.as_tensor(data.get(NUM_TILES, [])).flatten()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        counts = None  # no numbers, or lists of different lengths
    if counts is None or (len(counts) and counts.dtype not in _WHOLE):
        raise VLLMValidationError(
            f"{NUM_TILES} must be whole numbers, one for each image.", parameter="image"
        )
    return counts.to(torch.int64)
