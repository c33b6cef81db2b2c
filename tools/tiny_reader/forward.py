"""The reference model's arithmetic in bfloat16, written for speed of training.

It uses the parameters of ``Reference`` and gives its results up to rounding, which
tests/tools/test_tiny_reader.py checks. PyTorch's fused attention has a slow backward
pass on CPUs for sequences as short as a tile; plain matrix products are faster.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaModel

from nemotron_vl.verify.reference import RadioTower, Reference
from vllm_nemotron_vl.config.nemotron_vl_cpu import processor_flags


def fastest_dtype() -> torch.dtype:
    """bfloat16 if this CPU multiplies matrices of it in hardware."""
    is_fast = {"amx_bf16", "avx512_bf16"} & set(processor_flags())
    return torch.bfloat16 if is_fast else torch.float32


def linear(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def layer_norm(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention of (n, heads, tokens, size) to (n, tokens, heads * size)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def encode(tower: RadioTower, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Conditioned pixels (n, 3, side, side) to features (n, patches, width)."""
    rows, columns = (side // tower.patch_size for side in pixels.shape[2:])
    patches = F.unfold(pixels, tower.patch_size, stride=tower.patch_size)
    x = linear(patches.transpose(1, 2).to(dtype), tower.embedder)
    x = x + tower.resize_positions(rows, columns).to(dtype)
    prefix = tower.prefix.to(dtype).expand(len(x), -1, -1)
    x = torch.cat([prefix, x], dim=1)
    for block in tower.blocks:
        heads = block.attn.num_heads
        qkv = linear(layer_norm(x, block.norm1), block.attn.qkv)
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + linear(attend(q, k, v), block.attn.proj)
        hidden = F.gelu(linear(layer_norm(x, block.norm2), block.mlp.fc1))
        x = x + linear(hidden, block.mlp.fc2)
    return x[:, prefix.shape[1] :]


def connect(model: Reference, features: torch.Tensor) -> torch.Tensor:
    """Features (n, patches, width) to embeddings (n, tokens, width)."""
    norm, first, _, second = model.mlp1
    x = layer_norm(model.pixel_shuffle(features), norm)
    return linear(F.gelu(linear(x, first)), second)


class Decoder:
    """The language model without its embeddings.

    Converts its weights once, so that several batches of one step share them.
    """

    def __init__(self, llama: LlamaModel, dtype: torch.dtype) -> None:
        self.llama, self.dtype = llama, dtype
        self.weights = []
        for layer in self.llama.layers:
            attention, mlp = layer.self_attn, layer.mlp
            projections = attention.q_proj, attention.k_proj, attention.v_proj
            gates = mlp.gate_proj, mlp.up_proj
            # The norms' weights are multiplied into those of the layers behind them.
            first, second = layer.input_layernorm, layer.post_attention_layernorm
            fused = [
                torch.cat([part.weight for part in projections]) * first.weight,
                attention.o_proj.weight,
                torch.cat([part.weight for part in gates]) * second.weight,
                mlp.down_proj.weight,
            ]
            self.weights.append([weight.to(dtype) for weight in fused])

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        """RMS norm without its weights."""
        mean = x.float().square().mean(-1, keepdim=True)
        return x * (mean + self.llama.norm.variance_epsilon).rsqrt().to(x.dtype)

    def __call__(
        self, embeds: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embeddings (n, tokens, width) to the final hidden states.

        ``mask`` is added to the scores of attention. By default it is causal.
        """
        tokens = embeds.shape[1]
        cos, sin = self.llama.rotary_emb(embeds.float(), torch.arange(tokens)[None])
        cos, sin = (part[:, None].to(self.dtype) for part in (cos, sin))
        if mask is None:
            mask = embeds.new_full((tokens, tokens), float("-inf")).triu(1)
        attention = self.llama.layers[0].self_attn
        groups = attention.num_key_value_groups
        x = embeds
        for qkv_weight, out, gates, down in self.weights:
            qkv = F.linear(self._normalise(x), qkv_weight)
            qkv = qkv.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            kv_heads = qkv.shape[1] // (groups + 2)
            qk, v = qkv.split([kv_heads * (groups + 1), kv_heads], 1)
            first, second = qk.chunk(2, -1)
            qk = qk * cos + torch.cat([-second, first], -1) * sin
            q, k = qk.split([kv_heads * groups, kv_heads], 1)
            # Query heads of a group share a key and a value head.
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            x = x + F.linear(attend(q, k, v, mask), out)
            gate, up = F.linear(self._normalise(x), gates).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return self._normalise(x) * self.llama.norm.weight.to(self.dtype)
