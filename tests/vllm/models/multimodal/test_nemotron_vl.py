"""The model class: pixel conditioning, connector, declared interfaces."""

import json

import pytest
import torch
from safetensors.torch import load_file
from vllm.model_executor.models import interfaces

from nemotron_vl.checkpoints.inspection import PARTS, inspect
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from support.noise import tiles
from support.reloading import TOWER
from vllm_nemotron_vl.model_executor.models.nemotron_vl import LlamaNemotronVLChatModel


@pytest.fixture(scope="module")
def model(load_model, checkpoint):
    return load_model(checkpoint)


def test_positions_are_kept_at_the_size_of_a_tile(model):
    grid = model.vision_model.model.patch_generator
    assert grid.pos_embed.shape == (1, 16, 384)  # the checkpoint has 256 positions


def test_positions_are_resized_in_float32(model):
    """bfloat16, as in the checkpoint, has no thirds."""
    positions = torch.arange(9.0).bfloat16().view(1, 9, 1)  # 3 x 3, row by row
    found = model.vision_model._to_tile_grid(positions).flatten()
    steps = torch.linspace(0, 2, 4)
    torch.testing.assert_close(found, (3 * steps[:, None] + steps).flatten())


def test_pixels_are_conditioned_once_from_uint8_or_float(model):
    pixels = tiles(2)
    vision = model.config.vision_config
    # The checkpoint stores the statistics in bfloat16.
    mean = torch.tensor(vision.norm_mean).bfloat16().float()
    std = torch.tensor(vision.norm_std).bfloat16().float()
    expected = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(
        model.input_conditioner(pixels), expected, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        model.input_conditioner(pixels / 255), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_pixel_shuffle_puts_neighbours_into_one_token(load_model, tmp_path, version):
    make_checkpoint(tmp_path / "ckpt", ps_version=version)
    model = load_model(tmp_path / "ckpt")
    grid = torch.arange(16.0).reshape(1, 4, 4, 1)  # patches numbered row by row
    tokens = model.pixel_shuffle(grid).flatten(1, 2)[0].tolist()
    corners = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert [sorted(token) for token in tokens] == (
        corners if version == "v2" else [corners[i] for i in (0, 2, 1, 3)]
    )


def test_the_connector_is_layernorm_linear_gelu_linear(model, checkpoint):
    stored = load_file(checkpoint / "model.safetensors")
    x = torch.randn(2, 4, 4 * 384)
    y = torch.nn.functional.layer_norm(
        x, (4 * 384,), stored["mlp1.0.weight"].float(), stored["mlp1.0.bias"].float()
    )
    for name in ("mlp1.1", "mlp1.3"):
        y = torch.nn.functional.linear(
            y, stored[name + ".weight"].float(), stored[name + ".bias"].float()
        )
        y = torch.nn.functional.gelu(y) if name == "mlp1.1" else y
    torch.testing.assert_close(model.mlp1(x), y, rtol=1e-4, atol=1e-4)


def test_features_of_a_tile_do_not_depend_on_its_batch(model):
    batch = tiles(5)
    alone = torch.cat([model.extract_feature(tile[None]) for tile in batch])
    torch.testing.assert_close(
        model.extract_feature(batch), alone, rtol=1e-4, atol=1e-5
    )


def test_declared_interfaces(model):
    for supports in (
        interfaces.supports_multimodal,
        interfaces.supports_pp,
        interfaces.supports_lora,
        interfaces.supports_eagle,
        interfaces.supports_eagle3,
        interfaces.supports_encoder_cudagraph,
    ):
        assert supports(model), supports.__name__
    assert isinstance(model, interfaces.SupportsQuant)
    # The class sets these itself: vLLM caches them by a hash of the class's file.
    for flag in (
        "supports_encoder_tp_data",
        "supports_mm_device_do_normalize",
        "supports_tower_connector_lora",
    ):
        assert LlamaNemotronVLChatModel.__dict__[flag] is True


def test_lora_and_quantisation_see_the_checkpoints_names():
    rename = LlamaNemotronVLChatModel.hf_to_vllm_mapper.get_rename_mapper().map_name
    assert rename(TOWER + "model.blocks.3.attn.qkv") == (
        "vision_model.model.encoder.layers.3.attn.qkv"
    )
    assert rename("mlp1.1") == "mlp1.1"
    name = "language_model.model.layers.0.self_attn.q_proj"
    assert rename(name) == name


def test_module_prefixes_equal_module_names(model):
    """Quantisation and LoRA find a layer by the prefix that it was built with."""
    for name, module in model.named_modules():
        if prefix := getattr(module, "prefix", None):
            assert prefix == name


def test_the_parts_for_lora(model):
    mapping = model.get_mm_mapping()
    assert mapping.tower_model == ["vision_model"]
    assert mapping.connector == ["mlp1"]
    assert mapping.language_model == ["language_model"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_lora_token_counts_are_those_of_the_layers(load_model, checkpoint, count):
    model = load_model(checkpoint, enable_lora=True, enable_tower_connector_lora=True)
    seen = {}
    block = model.vision_model.model.encoder.layers[0].attn.qkv
    hooks = [
        block.register_forward_hook(lambda m, i, o: seen.update(tower=i[0][..., 0])),
        model.mlp1[1].register_forward_hook(
            lambda m, i, o: seen.update(connector=i[0][..., 0])
        ),
    ]
    if count:
        model.extract_feature(tiles(count))
    for hook in hooks:
        hook.remove()
    counts = model.get_mm_lora_token_counts(
        modality="image", mm_kwargs=None, num_mm_embeds=count * model.num_image_token
    )
    measured = tuple(seen[k].numel() if count else 0 for k in ("tower", "connector"))
    assert counts == measured


def test_image_token_for_draft_models(load_model, checkpoint, monkeypatch):
    """Set only with speculative decoding, because a worker loads a tokenizer for it."""
    model = load_model(checkpoint)
    assert not hasattr(model.config, "image_token_index")
    vocabulary = json.loads((checkpoint / "tokenizer.json").read_text())
    (image,) = [
        t["id"] for t in vocabulary["added_tokens"] if t["content"] == "<image>"
    ]
    model = load_model(
        checkpoint,
        speculative_config={"method": "ngram", "num_speculative_tokens": 2},
    )
    assert model.config.image_token_index == image


def test_only_images_have_a_placeholder():
    assert LlamaNemotronVLChatModel.get_placeholder_str("image", 1) == "<image>"
    with pytest.raises(ValueError, match="images only, not video"):
        LlamaNemotronVLChatModel.get_placeholder_str("video", 1)


def test_the_tower_is_not_kept_without_images(load_model, checkpoint):
    model = load_model(checkpoint, limit_mm_per_prompt={"image": 0})
    names = [name for name, _ in model.named_parameters()]
    assert names
    assert all(name.startswith("language_model.") for name in names)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"cpe_max_size": 512, "tile_size": 128}])
def test_the_inspect_command_reports_what_is_loaded(
    load_model, native_products, tmp_path, dtype, options
):
    make_checkpoint(tmp_path / "ckpt", **options)
    model = load_model(tmp_path / "ckpt", dtype, pack_weights=False)
    found = inspect(str(tmp_path / "ckpt"), dtype=dtype)
    for part, prefix in PARTS.items():
        mine = [p for n, p in model.named_parameters() if n.startswith(prefix)]
        assert found["parts"][part]["rank_parameters"] == sum(p.numel() for p in mine)
        assert found["parts"][part]["rank_bytes"] == sum(p.nbytes for p in mine)
    assert not found["problems"]
