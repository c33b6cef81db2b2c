"""What `nemotron-vl inspect` reports from the headers of a checkpoint.

The tests of the model and of two ranks compare its report with what is loaded.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_vl.checkpoints.inspection import PARTS, inspect
from nemotron_vl.main import main
from vllm_nemotron_vl.config import nemotron_vl_cpu
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import chat_layout
from vllm_nemotron_vl.model_executor.models.nemotron_vl_weights import checked
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig


def test_stored_sizes_are_those_of_the_file(tiny):
    found = inspect(str(tiny))
    tensors = load_file(tiny / "model.safetensors")
    for part, prefix in PARTS.items():
        mine = [t for name, t in tensors.items() if name.startswith(prefix)]
        assert found["parts"][part]["bytes"] == sum(t.nbytes for t in mine)
        assert found["parts"][part]["parameters"] == sum(t.numel() for t in mine)


def test_the_cost_of_images(tiny):
    values = json.loads((tiny / "config.json").read_text())
    side = values["force_image_size"]
    tokens = (side // values["patch_size"] // 2) ** 2
    found = inspect(str(tiny), max_model_len=1000)
    assert found["tokens_per_tile"] == tokens
    assert found["largest_image"] == {
        "tiles": 13,
        "tokens": 13 * tokens + 2,
        "bytes": 13 * 3 * side * side,
    }
    assert found["images_in_context"] == 1000 // (13 * tokens + 2)
    config = values["llm_config"]
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    kv_values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    assert found["kv_bytes_per_token"] == kv_values * head_dim * 2


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}])
def test_a_cpu_that_widens_the_encoder_is_noted(tiny, capsys, monkeypatch, flags):
    monkeypatch.setattr(nemotron_vl_cpu, "processor_flags", lambda: frozenset(flags))
    assert main(["inspect", str(tiny)]) == 0
    parts = inspect(str(tiny))["parts"]
    values = sum(
        parts[part]["rank_parameters"] for part in ("vision tower", "connector")
    )
    note = f"tower and the connector in float32: {4 * values:,} bytes on a rank."
    assert (note in capsys.readouterr().out) == (len(flags) == 1)


@pytest.fixture
def broken(checkpoint, tmp_path):
    """The random checkpoint with one tensor missing, one unknown and one misshapen."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["mlp1.3.bias"]
    tensors["mlp1.5.bias"] = torch.zeros(3)
    tensors["mlp1.1.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_broken_checkpoint_is_described(broken, capsys):
    assert main(["inspect", str(broken)]) == 1
    printed = capsys.readouterr().out
    assert "Problem: 1 tensors are missing: mlp1.3.bias." in printed
    assert "Problem: 1 tensors are not known: mlp1.5.bias." in printed
    assert "mlp1.1.bias has the shape (7,), config.json implies (256,)" in printed


CHANGED_SHAPES = {
    "transposed": ("mlp1.1.weight", lambda tensor: tensor.T.contiguous()),
    "flat": ("vision_model.radio_model.model.patch_generator.pos_embed", torch.flatten),
    "statistics": (
        "vision_model.radio_model.input_conditioner.norm_mean",
        lambda _: torch.full((3,), 0.5),
    ),
}


@pytest.mark.parametrize("change", CHANGED_SHAPES)
def test_a_shape_that_loading_refuses_is_a_problem(checkpoint, tmp_path, change):
    """Also one of as many values."""
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    name, change_shape = CHANGED_SHAPES[change]
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] = change_shape(tensors.get(name))
    save_file(tensors, tmp_path / "model.safetensors")
    (problem,) = inspect(str(tmp_path))["problems"]
    assert f"{name} has the shape {tuple(tensors[name].shape)}" in problem
    layout = chat_layout(NemotronVLConfig.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match=f"'{name}' of the checkpoint has the shape"):
        list(checked(tensors.items(), layout, True, (), {}))


def test_sizes_that_ranks_cannot_share_are_named(checkpoint, capsys):
    assert main(["inspect", str(checkpoint), "--tp", "3", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems == [
        "llm_config.num_attention_heads = 4 is not divisible by 3 ranks.",
        "llm_config.intermediate_size = 512 is not divisible by 3 ranks.",
        "projector_hidden_size = 256 is not divisible by 3 ranks.",
        "llm_config.num_key_value_heads = 2 neither divides 3 ranks nor is "
        "divided by them.",
    ]


def test_unsupported_keys_and_contexts_are_named(checkpoint, tmp_path):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    config["image_tag_type"] = "nvlm"
    (tmp_path / "config.json").write_text(json.dumps(config))
    first, second = inspect(str(tmp_path), max_model_len=10**6)["problems"]
    assert "image_tag_type = 'nvlm' is not supported" in first
    assert "--max-model-len 1000000 is more than the checkpoint's context" in second


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "shapes", "fits"),
    [
        (
            "language_model.model.embed_tokens",
            {"lora_embedding_A": "rank vocabulary", "lora_embedding_B": "width rank"},
            True,
        ),
        (
            "language_model.model.embed_tokens",
            {"lora_embedding_A": "vocabulary rank", "lora_embedding_B": "rank width"},
            False,
        ),
        ("language_model.model.norm", {"lora_A.weight": "rank width"}, False),
        (
            "vision_model.radio_model.model.patch_generator.embedder",
            {"lora_A.weight": "rank patch"},
            False,
        ),
    ],
    ids=["embeddings", "turned embeddings", "norm", "patch embedder"],
)
def test_adapters_of_special_layers(tiny, tmp_path, layer, shapes, fits):
    llm = json.loads((tiny / "config.json").read_text())["llm_config"]
    sizes = {
        "rank": 2,
        "vocabulary": llm["vocab_size"],
        "width": llm["hidden_size"],
        "patch": 3 * 16 * 16,
    }
    tensors = {
        f"base_model.model.{layer}.{name}": torch.zeros(*map(sizes.get, sides.split()))
        for name, sides in shapes.items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2}))
    problems = inspect(str(tiny), adapters=[str(tmp_path)])["problems"]
    assert (not problems) == fits
    assert all(layer in problem for problem in problems)


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("{}/nothing", "There is no folder {}/nothing."),
        ("./no/thing", "There is no folder ./no/thing."),
        ("~/nothing", "There is no folder ~/nothing."),
        ("nothing", "There is no folder nothing."),
        ("{}/file", "{}/file is a file. Give the checkpoint's folder."),
        ("nobody/nothing", "There is no folder nobody/nothing, and "),
    ],
)
def test_a_missing_folder_is_called_one(tmp_path, capsys, command, model, message):
    (tmp_path / "file").touch()
    assert main([command, model.format(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nemotron-vl: {message.format(tmp_path)}")
    assert ("from the hub: " in error) == (model == "nobody/nothing")


def test_models_that_find_and_rank_pages_are_named(embed_checkpoint, tmp_path, capsys):
    assert main(["inspect", str(embed_checkpoint)]) == 2
    said = capsys.readouterr().err
    assert "is of the architecture LlamaNemotronVLModel. Only the chat model" in said
    (tmp_path / "config.json").write_bytes(
        (embed_checkpoint / "config.json").read_bytes()
    )
    assert main(["inspect", str(tmp_path)]) == 2
    assert "Only the chat model" in capsys.readouterr().err


def test_their_damaged_files_are_named(embed_checkpoint, tmp_path, capsys):
    """A server that cannot read them sends users to this command."""
    shutil.copytree(embed_checkpoint, tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    assert main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors" in said and "Only the chat model" not in said
