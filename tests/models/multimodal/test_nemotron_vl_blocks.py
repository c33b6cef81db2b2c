"""The blocks of the tower: no layer scales; attention of one head after the other."""

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    layerwise,
)
from vllm.model_executor.models.intern_vit import InternVisionEncoderLayer

from support.loading import make_config
from support.tiny import BLOCKS, TILE, TOWER_WIDTH
from vllm_nemotron_vl.model_executor.models.nemotron_vl_blocks import HeadwiseAttention

ELEMENTWISE = ("add", "gelu", "layer_norm", "mul")


class Operators(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_block_equals_that_of_internvit_with_scales_of_one(load_model, tiny, dtype):
    for block in load_model(tiny, dtype).vision_model.model.encoder.layers:
        tokens = torch.randn(3, 24, TOWER_WIDTH, dtype=block.norm1.weight.dtype)
        found = block(tokens)
        block.ls1 = block.ls2 = torch.ones(TOWER_WIDTH, dtype=tokens.dtype)
        assert torch.equal(found, InternVisionEncoderLayer.forward(block, tokens))


def test_a_block_has_five_elementwise_operators(load_model, tiny):
    encoder = load_model(tiny).vision_model.model.encoder
    with Operators() as operators:
        encoder(torch.randn(2, 24, TOWER_WIDTH))
    found = {name: operators.counts[name] / BLOCKS for name in ELEMENTWISE}
    assert found == {"add": 2, "gelu": 1, "layer_norm": 2, "mul": 0}


def test_a_reload_finds_weights_for_all_parts_of_the_tower(
    load_model, tiny, monkeypatch
):
    model = load_model(tiny)
    tile = torch.full((1, 3, TILE, TILE), 9, dtype=torch.uint8)
    before = model.extract_feature(tile)
    said: list[tuple] = []
    monkeypatch.setattr(layerwise.logger, "warning", lambda *line: said.append(line))
    initialize_layerwise_reload(model)
    model.load_weights(load_file(tiny / "model.safetensors").items())
    finalize_layerwise_reload(model, make_config(tiny, "float32").model_config)
    # vLLM also says so of the rotary embedding of its Llama, a buffer.
    tower = {type(layer).__name__ for layer in model.vision_model.modules()}
    assert not tower & {layer for _, layer in said}
    assert torch.equal(model.extract_feature(tile), before)


def attend(query, key, value, heads: int, scale: float) -> torch.Tensor:
    """Attention as the formula states it, in float64."""
    query, key, value = (
        x.double().unflatten(2, (heads, -1)).transpose(1, 2)
        for x in (query, key, value)
    )
    weights = (query @ key.transpose(2, 3) * scale).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("tokens", [1, 24, 127, 128, 300, 1032])
@pytest.mark.parametrize(("heads", "head_size"), [(6, 64), (4, 80), (2, 72), (3, 33)])
def test_headwise_attention_is_close_to_exact_attention(tokens, heads, head_size):
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, tokens, 3 * heads * head_size)
    packed = torch.randn(shape, generator=generator).to(torch.bfloat16)
    query, key, value = packed.chunk(3, dim=2)  # strided, as in the tower
    scale = head_size**-0.5
    found = HeadwiseAttention(heads, head_size, scale)(query, key, value)
    expected = attend(query, key, value, heads, scale)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert (found - expected).norm() / expected.norm() < 0.01


def test_headwise_attention_is_no_less_exact_than_plain_bfloat16():
    """Plain attention, such as timm's unfused one, also rounds the scores."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 1032, 320, generator=generator).to(torch.bfloat16)
    expected = attend(q, k, v, 4, 80**-0.5)
    found = HeadwiseAttention(4, 80, 80**-0.5)(q, k, v)
    q, k, v = (x.unflatten(2, (4, 80)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) * 80**-0.5
    plain = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert (found - expected).norm() <= (plain - expected).norm()
