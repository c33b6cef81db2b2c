# SPDX-License-Identifier: Apache-2.0
"""The transformer blocks of the C-RADIO tower."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from vllm.compilation.decorators import (
    should_torch_compile_mm_encoder,
    support_torch_compile,
)
from vllm.config import CompilationMode, VllmConfig
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.intern_vit import InternMLP, InternParallelAttention
from vllm.platforms import current_platform

from ...config.nemotron_vl_cpu import has_native_products

# Below this many tokens, one call for all heads is faster (measured).
_FEW_TOKENS = 128


def compilation_problem(vllm_config: VllmConfig) -> str | None:
    """What ``compile_mm_encoder`` has no effect with, as a sentence.

    Nobody has seen vLLM's kernels for adapters right in a compiled encoder.
    """
    start = "compile_mm_encoder has no effect with"
    adapters = vllm_config.lora_config
    mode = vllm_config.compilation_config.mode
    if not should_torch_compile_mm_encoder(vllm_config):
        return None
    if adapters and adapters.enable_tower_connector_lora:
        return f"{start} --enable-tower-connector-lora."
    if mode in (CompilationMode.NONE, CompilationMode.STOCK_TORCH_COMPILE):
        return f"{start} compilation mode {mode.name}."
    return None


def _compiles(vllm_config: VllmConfig) -> bool:
    return (
        should_torch_compile_mm_encoder(vllm_config)
        and compilation_problem(vllm_config) is None
    )


@support_torch_compile(
    dynamic_arg_dims={"hidden_states": 0},
    # Else a first forward with one tile compiles a graph for one tile alone, which
    # vLLM runs for any number of them.
    mark_unbacked_dims={"hidden_states": 0},
    enable_if=_compiles,
    is_encoder=True,
)
class TowerBlock(nn.Module):
    """InternViT's block without layer scales, which C-RADIO does not have.

    Its attention is head by head where that is faster, else vLLM's.

    Args:
        config: Configuration of the tower.
        quant_config: Quantisation of the linear layers, if any.
        num_dummy_heads: Passed on to vLLM's attention.
        prefix: Name of the module in the model.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        quant_config: QuantizationConfig | None = None,
        *,
        num_dummy_heads: int = 0,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = InternParallelAttention(
            config,
            quant_config,
            num_dummy_heads=num_dummy_heads,
            prefix=f"{prefix}.attn",
        )
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = InternMLP(config, quant_config, prefix=f"{prefix}.mlp")
        attention: Any = self.attn.attn
        native = current_platform.is_cpu() and has_native_products("bfloat16")
        if native and attention.dtype == torch.bfloat16:
            self.attn.attn = HeadwiseAttention(  # type: ignore[assignment]
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
