"""The tower on CPUs: its dtype and its batch size."""

import pytest
import torch
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

from support.loading import make_config
from vllm_nemotron_vl.model_executor.models import config
from vllm_nemotron_vl.model_executor.models.nemotron_vl_attention import (
    HeadwiseAttention,
)


@pytest.fixture(params=["native", "emulated"])
def processor(request):
    """A CPU with instructions for 16-bit products, and one without."""
    request.getfixturevalue(f"{request.param}_products")
    return request.param


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tower_and_connector_compute_in_a_dtype_that_the_cpu_has(
    load_model, checkpoint, processor, dtype
):
    model = load_model(checkpoint, dtype)
    expected = torch.float32 if processor == "emulated" else getattr(torch, dtype)
    for part in (model.vision_model, model.mlp1):
        # With AMX, vLLM keeps the biases of small layers in float32.
        found = {t.dtype for n, t in part.named_parameters() if not n.endswith("bias")}
        assert found == {expected}
    assert model.input_conditioner.dtype == expected
    kinds = {type(layer.attn.attn) for layer in model.vision_model.model.encoder.layers}
    headwise = processor == "native" and dtype == "bfloat16"
    assert kinds == {HeadwiseAttention if headwise else MMEncoderAttention}
    for name, tensor in model.language_model.named_parameters():
        assert tensor.dtype == getattr(torch, dtype), name
    tile = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    assert model.extract_feature(tile).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_equal_float32_where_products_are_emulated(
    load_model, checkpoint, emulated_products, dtype
):
    tiles = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    exact = load_model(checkpoint, "float32").extract_feature(tiles)
    found = load_model(checkpoint, dtype).extract_feature(tiles)
    # The encoder keeps its weights in float32, so they are not rounded either.
    assert torch.equal(found, exact.to(found.dtype))


def test_one_warning_recommends_a_faster_dtype(checkpoint, processor, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(config.logger, "warning", said.append)
    for dtype in ("bfloat16", "float16", "float32"):
        make_config(checkpoint, dtype)
    slow = ["bfloat16", "float16"] if processor == "emulated" else []
    for dtype, line in zip(slow, said, strict=True):
        assert f"no instructions for products of {dtype}" in line


def test_a_cpu_encodes_one_tile_at_a_time(load_model, checkpoint):
    assert load_model(checkpoint).max_encoder_tiles == 1


@pytest.mark.parametrize("missing", [0, 5, None], ids=["none", "some", "all"])
def test_a_sparse_patch_has_the_whole_grid_of_positions_or_nothing(
    load_model, checkpoint, missing
):
    """In vLLM's sparse patches, NaN stands for values that do not change."""
    tower = load_model(checkpoint).vision_model
    grid = tower.model.patch_generator.pos_embed
    larger = torch.ones(1, 4 * grid.shape[1], grid.shape[2])
    larger[:, :missing] = torch.nan
    patch = [("model.patch_generator.pos_embed", larger)]
    if missing == 5:
        with pytest.raises(ValueError, match="all values of pos_embed or none"):
            tower.load_weights(patch)
    else:
        tower.load_weights(patch)
        assert bool(grid.isnan().all()) == (missing is None)
