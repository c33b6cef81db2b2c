# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations and bytes that a page takes, from a configuration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_vl.checkpoints.tiler import MARKERS
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    LANGUAGE_MODEL,
    TOWER,
    connector_tensors,
    head_size,
    language_model_tensors,
    num_prefix_tokens,
    tower_tensors,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    tokens_of_tile,
)

_FLOAT32 = 4  # bytes of a pixel's value in-tree
_EMBEDDER = TOWER + "model.patch_generator.embedder.weight"
_PREFIX = TOWER + "model.patch_generator.cls_token.token"  # a table, no product
_EMBEDDING = LANGUAGE_MODEL + "model.embed_tokens.weight"
_HEAD = LANGUAGE_MODEL + "lm_head.weight"


@dataclass(frozen=True)
class PageWork:
    """What a request with one page costs, whatever computes it.

    A product of matrices counts 2 operations for each multiplication; norms,
    activations and softmax are left out.

    Attributes:
        prompt_tokens: Image, markers and text.
        tower: Operations of the vision tower, for all tiles.
        connector: Operations of the connector.
        prefill: Operations of the language model for the prompt, without attention.
        prefill_attention: Operations of its causal attention.
        decode: Operations for a token of the answer, at the middle of the answer.
        unread_parameters: Size of the table of token embeddings, which decoding does
            not read; 0 if it is the output layer, too.
        tile_bytes: Bytes of the tiles as uint8.
        in_tree_tile_bytes: Bytes of the tiles as float32.
        embedding_bytes: Bytes of the tiles' embeddings in 16 bits.
    """

    prompt_tokens: int
    tower: float
    connector: float
    prefill: float
    prefill_attention: float
    decode: float
    unread_parameters: int
    tile_bytes: int
    in_tree_tile_bytes: int
    embedding_bytes: int

    @property
    def total(self) -> float:
        """Operations until the first token."""
        return self.tower + self.connector + self.prefill + self.prefill_attention


def work_of_page(
    config: Any, tiles: int, question_tokens: int, answer_tokens: int
) -> PageWork:
    """The cost of a request with one page.

    Args:
        config: The composite configuration.
        tiles: Tiles of the page, with its thumbnail.
        question_tokens: Text of the prompt: question and chat template.
        answer_tokens: Length of the answer.
    """
    size, vision, llm = config.force_image_size, config.vision_config, config.llm_config
    patches = (size // vision.patch_size) ** 2
    tile_tokens = tokens_of_tile(size, vision.patch_size, config.downsample_ratio)
    image_tokens = tiles * tile_tokens
    prompt = image_tokens + MARKERS + question_tokens

    rows = patches + num_prefix_tokens(vision)
    tower = tower_tensors(config)
    embedder = math.prod(tower[_EMBEDDER])  # sees only patches, no prefix tokens
    blocks = _products(tower, (_EMBEDDER, _PREFIX))
    depth_width = vision.num_hidden_layers * vision.hidden_size
    a_tile = 2 * (blocks * rows + embedder * patches) + 4 * rows**2 * depth_width

    language = language_model_tensors(config)
    table = math.prod(language[_EMBEDDING])
    layers = _products(language, (_EMBEDDING, _HEAD))
    width = llm.num_hidden_layers * llm.num_attention_heads * head_size(llm)
    return PageWork(
        prompt_tokens=prompt,
        tower=tiles * a_tile,
        connector=2 * image_tokens * _products(connector_tensors(config)),
        prefill=2 * (layers * prompt + table),
        prefill_attention=2 * prompt**2 * width,
        decode=2 * (layers + table) + 4 * (prompt + answer_tokens / 2) * width,
        unread_parameters=table if _HEAD in language else 0,
        tile_bytes=tiles * 3 * size**2,
        in_tree_tile_bytes=tiles * 3 * size**2 * _FLOAT32,
        embedding_bytes=image_tokens * llm.hidden_size * 2,
    )


def _products(tensors: dict[str, tuple[int, ...]], without: Sequence[str] = ()) -> int:
    """Parameters of the matrices but those ``without``."""
    return sum(
        math.prod(shape)
        for name, shape in tensors.items()
        if len(shape) == 2 and name not in without
    )
