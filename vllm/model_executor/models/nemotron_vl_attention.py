# SPDX-License-Identifier: Apache-2.0
"""Attention of the C-RADIO tower, between all tokens of a tile."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
from vllm.model_executor.models.vision import get_multimodal_config
from vllm.platforms import current_platform
from vllm.utils.math_utils import round_up
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from ...config.nemotron_vl_cpu import has_x86_bfloat16

# Below this many tokens, one call for all heads is faster (measured).
_FEW_TOKENS = 128

# cuDNN's FP8 attention takes heads of multiples of this width.
_FP8_HEAD = 16


def choose_attention(attention: MMEncoderAttention) -> nn.Module:
    """What the tower uses in the place of vLLM's attention, or that itself.

    Args:
        attention: vLLM's, of one block.
    """
    if attention.attn_backend == AttentionBackendEnum.FLASHINFER:
        return PackedAttention(attention)
    options = get_multimodal_config()
    named = options is not None and options.mm_encoder_attn_backend is not None
    # Measured on x86 alone, as are the numbers of this module.
    headwise = current_platform.is_cpu() and has_x86_bfloat16()
    if headwise and not named and attention.dtype == torch.bfloat16:
        return HeadwiseAttention(
            attention.num_heads, attention.head_size, attention.scale
        )
    return attention


class PackedAttention(nn.Module):
    """Attention by FlashInfer, which reads packed sequences with their offsets.

    Args:
        attention: vLLM's, for FlashInfer.
    """

    def __init__(self, attention: MMEncoderAttention) -> None:
        super().__init__()
        self.attention = attention
        size = attention.head_size
        if attention.fp8_enabled:
            size = round_up(size, _FP8_HEAD)
        self.width = attention.num_heads * size

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Attention of tiles; see `HeadwiseAttention`."""
        offsets, longest, lengths = _sequences(
            *query.shape[:2], self.width, query.device
        )
        heads = (self.attention.num_heads, self.attention.head_size)
        return self.attention(
            query.unflatten(2, heads),
            key.unflatten(2, heads),
            # Dense like queries, so that the same offsets are right.
            value.contiguous().unflatten(2, heads),
            cu_seqlens=offsets,
            max_seqlen=longest,
            sequence_lengths=lengths,
        ).flatten(2)


# All blocks share one entry. It stays, since an encoder graph reads its tensors.
@cache
def _sequences(
    tiles: int, tokens: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The sequences of tiles, one after the other.

    Args:
        tiles: How many.
        tokens: Number of tokens of each tile.
        width: Elements of all heads of a token.
        device: Device of the kernel.

    Returns:
        Offsets in elements, of queries and again of values; the longest sequence,
        rounded up as vLLM does, on the CPU; the lengths. vLLM adds empty sequences.
    """
    backend = AttentionBackendEnum.FLASHINFER
    ends = np.arange(tiles + 1, dtype=np.int32) * tokens
    offsets = MMEncoderAttention.maybe_recompute_cu_seqlens(
        backend, ends, width, 1, device, fp8_padded_hidden_size=width
    )
    longest = MMEncoderAttention.compute_max_seqlen(backend, ends)
    lengths = MMEncoderAttention.maybe_compute_seq_lens(backend, ends, device)
    return offsets, torch.tensor(longest, dtype=torch.int32), lengths


class HeadwiseAttention(nn.Module):
    """Attention head by head, for bfloat16 on CPUs with bfloat16 instructions.

    oneDNN computes these products at full speed, torch's fused attention at a fifth
    of it. The scores of one head fit into the CPU's cache.

    Args:
        num_heads: Heads of this rank.
        head_size: Width of a head.
        scale: Factor of the scores.
    """

    def __init__(self, num_heads: int, head_size: int, scale: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **lengths: None,
    ) -> torch.Tensor:
        """Attention of tiles.

        Args:
            query: ``(batch, tokens, heads * head_size)``.
            key: Tensor of the same shape.
            value: Tensor of the same shape.
            lengths: Lengths of packed sequences; always ``None`` for tiles of one size.

        Returns:
            The same shape.
        """
        return attend_by_head(query, key, value, self.num_heads, self.scale)


# An operator, because a graph of the compiler must not depend on the batch.
@torch.library.custom_op("nemotron_vl::attend_by_head", mutates_args=())
def attend_by_head(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
) -> torch.Tensor:
    """See `HeadwiseAttention`."""
    batch, tokens, width = query.shape
    head_size = width // num_heads
    query, key, value = (
        x.unflatten(2, (num_heads, head_size)).transpose(1, 2)
        for x in (query, key, value)
    )
    if tokens < _FEW_TOKENS:
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return out.transpose(1, 2).flatten(2)
    out = query.new_empty((batch, tokens, num_heads, head_size))
    for tile in range(batch):
        for head in range(num_heads):
            scores = (query[tile, head] * scale) @ key[tile, head].t()
            # softmax computes in float32 and rounds its result once.
            weights = scores.softmax(-1)
            out[tile, :, head] = weights @ value[tile, head]
    return out.flatten(2)


@attend_by_head.register_fake
def _(query: torch.Tensor, *_: object) -> torch.Tensor:
    return query.new_empty(query.shape)
