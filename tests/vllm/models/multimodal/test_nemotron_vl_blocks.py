"""The blocks of the tower, which have no layer scales."""

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
