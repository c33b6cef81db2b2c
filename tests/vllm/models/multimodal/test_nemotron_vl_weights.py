"""Weights are complete and fit, whichever loader of vLLM reads them."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

from nemotron_vl.checkpoints import random_weights
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from support.noise import tiles
from support.reloading import TOWER
from vllm_nemotron_vl.model_executor.models.nemotron_vl import LlamaNemotronVLChatModel


@pytest.fixture
def edit(checkpoint, tmp_path):
    """A function that copies the checkpoint without or with some tensors."""

    def change(**options):
        copy = tmp_path / "edited"
        shutil.copytree(checkpoint, copy)
        tensors = load_file(copy / "model.safetensors")
        for name in options.get("drop", []):
            del tensors[name]
        tensors |= options.get("put", {})
        save_file(tensors, copy / "model.safetensors")
        return copy

    return change


@pytest.mark.parametrize(
    "name",
    [
        TOWER + "model.patch_generator.cls_token.token",
        TOWER + "model.patch_generator.pos_embed",
        TOWER + "model.blocks.1.attn.qkv.bias",
        "mlp1.0.bias",
        "mlp1.3.weight",
        "language_model.model.layers.0.self_attn.k_proj.weight",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "language_model.lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named(load_model, edit, name):
    broken = edit(drop=[name])
    with pytest.raises(ValueError, match=rf"lacks 1 of \d+ tensors: {name}\."):
        load_model(broken)


@pytest.mark.parametrize(
    "name",
    [
        TOWER + "model.patch_generator.pos_embed",
        TOWER + "model.patch_generator.cls_token.token",
        TOWER + "model.blocks.0.mlp.fc1.weight",
        TOWER + "input_conditioner.norm_mean",
        "mlp1.1.weight",
        "language_model.model.embed_tokens.weight",
    ],
)
def test_a_misshapen_tensor_is_named(load_model, edit, name):
    broken = edit(put={name: torch.zeros(5, 7)})
    with pytest.raises(ValueError, match=rf"'{name}'.* shape \(5, 7\).*implies \("):
        load_model(broken)


def test_buffers_that_only_some_exports_have_are_optional(load_model, edit, checkpoint):
    rotary = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    model = load_model(checkpoint)
    other = load_model(
        edit(
            drop=[TOWER + "input_conditioner." + n for n in ("norm_mean", "norm_std")],
            put={
                TOWER + "summary_idxs": torch.tensor([0, 1, 2]),
                rotary: torch.ones(32),
            },
        )
    )
    # The checkpoint stores CLIP's statistics in bfloat16; the defaults are exact.
    found, expected = (m.extract_feature(tiles(2)) for m in (other, model))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_second_load_may_be_partial(load_model, edit, checkpoint):
    model = load_model(edit())
    before = model.mlp1[3].bias.clone()
    model.load_weights([("mlp1.3.bias", torch.ones(256))])
    assert not torch.equal(before, model.mlp1[3].bias)
    assert torch.equal(model.mlp1[3].bias, torch.ones(256))


# Checkpoints that are loaded in other ways


STATISTICS = {
    TOWER + "input_conditioner.norm_mean": torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1),
    TOWER + "input_conditioner.norm_std": torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1),
}


def check_same(model, expected, kept: str = "") -> None:
    """Compare all parameters and buffers, but not those whose name has `kept`."""
    found, tensors = (
        dict(m.named_parameters()) | dict(m.named_buffers()) for m in (model, expected)
    )
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (kept and kept in name) or torch.equal(tensor, found[name]), name


def test_parameters_may_follow_dummy_weights(load_model, edit):
    """As reinforcement learning does. The statistics are no parameters."""
    folder = edit(put=STATISTICS)
    expected = load_model(folder, pack_weights=False)
    model = load_model(folder, pack_weights=False, load_format="dummy")
    defaults = model.input_conditioner.scale.clone()
    tensors = load_file(folder / "model.safetensors")
    parameters = {n: t for n, t in tensors.items() if n not in STATISTICS}
    model.load_weights(parameters.items())
    assert torch.equal(model.input_conditioner.scale, defaults)
    assert torch.allclose(
        defaults, 1 / (255 * torch.tensor([0.26862954, 0.26130258, 0.27577711]))
    )
    model.load_weights(STATISTICS.items())
    check_same(model, expected, kept="self_attn.attn._")  # scales of the KV cache


def test_sharded_state_keeps_the_statistics(load_model, edit, tmp_path):
    folder = edit(put=STATISTICS)
    expected = load_model(folder, pack_weights=False)
    shards = tmp_path / "shards"
    shutil.copytree(folder, shards, ignore=shutil.ignore_patterns("*.safetensors"))
    ShardedStateLoader.save_model(expected, str(shards), max_size=500_000)
    assert len(list(shards.glob("*.safetensors"))) > 1
    model = load_model(shards, pack_weights=False, load_format="sharded_state")
    check_same(model, expected)


def test_the_streamer_gives_the_same_model(load_model, edit):
    folder = edit(put=STATISTICS)
    expected = load_model(folder, pack_weights=False)
    model = load_model(folder, pack_weights=False, load_format="runai_streamer")
    check_same(model, expected)


def test_the_encoder_alone_is_loaded_of_several_files(
    load_model, tmp_path, monkeypatch
):
    """vLLM does not read the files that hold only the language model."""
    monkeypatch.setattr(random_weights, "_SHARD_BYTES", 1 << 20)
    make_checkpoint(tmp_path / "files")
    assert len([*(tmp_path / "files").glob("*.safetensors")]) > 2
    alone = load_model(tmp_path / "files", mm_encoder_only=True)
    whole = load_model(tmp_path / "files")
    assert torch.equal(alone.extract_feature(tiles(2)), whole.extract_feature(tiles(2)))
    for file in (tmp_path / "files").glob("*00001-of*.safetensors"):
        tensors = load_file(file)
        tensors.popitem()
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of"):
        load_model(tmp_path / "files", mm_encoder_only=True)


def test_every_parameter_comes_from_the_checkpoint(load_model, checkpoint):
    """Every tensor is used too, except the conditioner's statistics."""
    model = load_model(checkpoint, pack_weights=False)
    stored = load_file(checkpoint / "model.safetensors")
    parts = LlamaNemotronVLChatModel.packed_modules_mapping
    left = set(stored)
    for name, parameter in model.named_parameters():
        source = name.replace("vision_model.model.", TOWER + "model.")
        source = source.replace("model.encoder.layers.", "model.blocks.")
        names = [source]
        for packed, pieces in parts.items():
            if packed in source and packed != "qkv":
                names = [source.replace(packed, piece) for piece in pieces]
        tensor = torch.cat([stored[n].float() for n in names])
        if not name.endswith("pos_embed"):
            rows = len(tensor)  # vLLM pads the vocabulary with more rows
            assert torch.equal(parameter[:rows].float(), tensor), name
        left -= set(names)
    assert left == {
        TOWER + "input_conditioner.norm_mean",
        TOWER + "input_conditioner.norm_std",
    }


def test_the_checkpoints_own_statistics_win(load_model, edit):
    model = load_model(
        edit(
            put={
                TOWER + "input_conditioner.norm_mean": torch.full((3, 1, 1), 0.5),
                TOWER + "input_conditioner.norm_std": torch.full((3, 1, 1), 0.25),
            }
        )
    )
    pixels = tiles(1)
    torch.testing.assert_close(model.input_conditioner(pixels), pixels / 255 * 4 - 2)
