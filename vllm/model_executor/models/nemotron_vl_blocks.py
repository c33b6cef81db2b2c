# SPDX-License-Identifier: Apache-2.0
"""The transformer blocks of the C-RADIO tower."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.models.intern_vit import InternVisionEncoderLayer
from vllm.platforms import current_platform

from ...config.nemotron_vl_cpu import has_native_products

# Below this many tokens, one call for all heads is faster (measured).
_FEW_TOKENS = 128


class TowerBlock(InternVisionEncoderLayer):
    """InternViT's block without layer scales, which C-RADIO does not have.

    Its attention is head by head where that is faster, else vLLM's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.ls1, self.ls2
        attention: Any = self.attn.attn
        native = current_platform.is_cpu() and has_native_products("bfloat16")
        if native and attention.dtype == torch.bfloat16:
            self.attn.attn = HeadwiseAttention(
                attention.num_heads, attention.head_size, attention.scale
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attention and MLP, each added to its input.

        Args:
            hidden_states: ``(tiles, tokens, hidden_size)``.

        Returns:
            The same shape.
        """
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states))
        return hidden_states + self.mlp(self.norm2(hidden_states))


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
            key: Of the same shape.
            value: Of the same shape.
            lengths: Of packed sequences; always ``None`` for tiles of one size.

        Returns:
            The same shape.
        """
        batch, tokens, _ = query.shape
        query, key, value = (
            x.unflatten(2, (self.num_heads, self.head_size)).transpose(1, 2)
            for x in (query, key, value)
        )
        if tokens < _FEW_TOKENS:
            out = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
            return out.transpose(1, 2).flatten(2)
        out = query.new_empty((batch, tokens, self.num_heads, self.head_size))
        for tile in range(batch):
            for head in range(self.num_heads):
                scores = (query[tile, head] * self.scale) @ key[tile, head].t()
                # softmax computes in float32 and rounds its result once.
                weights = scores.softmax(-1)
                out[tile, :, head] = weights @ value[tile, head]
        return out.flatten(2)
