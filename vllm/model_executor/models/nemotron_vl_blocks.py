# SPDX-License-Identifier: Apache-2.0
"""The transformer blocks of the C-RADIO tower."""

from inspect import signature

import torch
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
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.ops import vit_attn_wrappers

from ...config.nemotron_vl_options import encoder_adapters, uses_packed_sequences
from .nemotron_vl_attention import choose_attention


def compilation_problem(vllm_config: VllmConfig) -> str | None:
    """What ``compile_mm_encoder`` has no effect with, as a sentence.

    Nobody has seen vLLM's kernels for adapters right in a compiled encoder.
    """
    start = "compile_mm_encoder has no effect with"
    mode = vllm_config.compilation_config.mode
    if not should_torch_compile_mm_encoder(vllm_config):
        return None
    if encoder_adapters(vllm_config):
        return f"{start} --enable-tower-connector-lora."
    options = vllm_config.model_config.get_multimodal_config()
    sdpa = options.mm_encoder_attn_backend == AttentionBackendEnum.TORCH_SDPA
    if (sdpa or current_platform.is_cpu()) and not _sdpa_compiles():
        return f"{start} TORCH_SDPA in this release of vLLM."
    if uses_packed_sequences(vllm_config):
        return f"{start} --mm-encoder-attn-backend FLASHINFER."
    if mode in (CompilationMode.NONE, CompilationMode.STOCK_TORCH_COMPILE):
        return f"{start} compilation mode {mode.name}."
    return None


def _sdpa_compiles() -> bool:
    """Whether the compiler can trace vLLM's call of torch's attention; not in 0.31."""
    fake = signature(vit_attn_wrappers.torch_sdpa_wrapper_fake)
    return fake.parameters["cu_seqlens"].default is None


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
        self.attn.attn = choose_attention(self.attn.attn)  # type: ignore[assignment]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attention and MLP, each added to its input.

        Args:
            hidden_states: ``(tiles, tokens, hidden_size)``.

        Returns:
            The same shape.
        """
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states))
        return hidden_states + self.mlp(self.norm2(hidden_states))
