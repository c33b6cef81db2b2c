"""Attention of the tower on CPUs."""

import pytest
import torch
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

from vllm_nemotron_vl.model_executor.models.nemotron_vl_tower import HeadwiseAttention


def attend(query, key, value, heads: int, scale: float) -> torch.Tensor:
    """In float64, as the formula reads."""
    query, key, value = (
        x.double().unflatten(2, (heads, -1)).transpose(1, 2)
        for x in (query, key, value)
    )
    weights = (query @ key.transpose(2, 3) * scale).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens", [1, 24, 127, 128, 300, 1032])
@pytest.mark.parametrize(("heads", "head_size"), [(6, 64), (4, 80), (2, 72), (3, 33)])
def test_headwise_attention_is_attention(tokens, heads, head_size):
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, tokens, 3 * heads * head_size)
    packed = torch.randn(shape, generator=generator).to(torch.bfloat16)
    query, key, value = packed.chunk(3, dim=2)  # strided, as the tower gives them
    scale = head_size**-0.5
    found = HeadwiseAttention(heads, head_size, scale)(query, key, value)
    expected = attend(query, key, value, heads, scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.01


def test_its_error_is_at_most_that_of_attention_in_bfloat16():
    """timm's attention without fusion also rounds the scores."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 1032, 320, generator=generator).to(torch.bfloat16)
    expected = attend(q, k, v, 4, 80**-0.5)
    found = HeadwiseAttention(4, 80, 80**-0.5)(q, k, v)
    q, k, v = (x.unflatten(2, (4, 80)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) * 80**-0.5
    plain = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert (found - expected).norm() <= (plain - expected).norm()


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("bfloat16", HeadwiseAttention),
        ("float16", MMEncoderAttention),
        ("float32", MMEncoderAttention),
    ],
)
def test_only_bfloat16_on_a_cpu_leaves_vllms_attention(
    load_model, checkpoint, dtype, kind
):
    model = load_model(checkpoint, dtype)
    layers = model.vision_model.model.encoder.layers
    assert {type(layer.attn.attn) for layer in layers} == {kind}


def test_a_cpu_encodes_one_tile_at_a_time(load_model, checkpoint):
    assert load_model(checkpoint).max_encoder_tiles == 1
