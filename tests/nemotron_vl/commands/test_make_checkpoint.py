"""`nemotron-vl make-checkpoint` writes the published layout."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from nemotron_vl.checkpoints import random_checkpoint as module
from nemotron_vl.checkpoints import random_weights
from nemotron_vl.main import main
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    checkpoint_tensors,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig

# Names and shapes in the published nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1.
PUBLISHED = {
    "vision_model.radio_model.model.patch_generator.cls_token.token": (8, 1280),
    "vision_model.radio_model.model.patch_generator.pos_embed": (1, 16384, 1280),
    "vision_model.radio_model.model.patch_generator.embedder.weight": (1280, 768),
    "vision_model.radio_model.model.blocks.31.norm1.weight": (1280,),
    "vision_model.radio_model.model.blocks.31.attn.qkv.weight": (3840, 1280),
    "vision_model.radio_model.model.blocks.31.mlp.fc2.bias": (1280,),
    "mlp1.0.weight": (5120,),
    "mlp1.1.weight": (4096, 5120),
    "mlp1.3.bias": (4096,),
    "language_model.model.layers.31.self_attn.k_proj.weight": (1024, 4096),
    "language_model.model.layers.31.mlp.down_proj.weight": (4096, 14336),
    "language_model.lm_head.weight": (128512, 4096),
}


def test_the_layout_at_the_published_sizes():
    vision = module._vision_config("vit_huge", 32, 2048, "bfloat16")
    config = NemotronVLConfig(
        llm_config=dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128512,
        ),
        vision_config=vision,
    )
    tensors = checkpoint_tensors(config)
    for name, shape in PUBLISHED.items():
        assert tensors[name] == shape
    blocks = {re.sub(r"\.\d+\.", ".N.", n) for n in tensors if ".blocks." in n}
    assert len(blocks) == 12  # none is a layer scale
    assert len(tensors) == 3 + 32 * 12 + 6 + 3 + 32 * 9


def test_the_files(checkpoint):
    names = sorted(file.name for file in checkpoint.iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["Llama_Nemotron_Nano_VL"]
    vision = config["vision_config"]
    assert vision["auto_map"]["AutoModel"] == "nvidia/C-RADIOv2-H--hf_model.RADIOModel"
    tensors = load_file(checkpoint / "model.safetensors")
    shapes = checkpoint_tensors(NemotronVLConfig.from_dict(config))
    assert {n: tuple(t.shape) for n, t in tensors.items()} == (
        shapes | CONDITIONER_TENSORS
    )
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_the_tokenizer(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text in ("Invoice 12,345.67 $", "naïve – 価格 🎉", "  two\n\nlines "):
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text
    for token in ("<image>", "<img>", "</img>", "<|eot_id|>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


def test_the_chat_template_renders_content_parts(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief. "}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": " Compare\n"},
                {"type": "image_url"},
                {"type": "image"},
                {"type": "video"},
                {"type": "text", "text": "\nnow. "},
            ],
        },
        {"role": "assistant", "content": " Equal. "},
        {"role": "user", "content": "Sure?"},
    ]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert text == (
        "<|begin_of_text|>"
        + header("system")
        + "Be brief.<|eot_id|>"
        + header("user")
        + "Compare\n<image>\n<image>\n<img></img>\nnow.<|eot_id|>"
        + header("assistant")
        + "Equal.<|eot_id|>"
        + header("user")
        + "Sure?<|eot_id|>"
        + header("assistant")
    )
    with pytest.raises(Exception, match="text, images and videos, not audio"):
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio"}]}], tokenize=False
        )


ADDED = ("image", "img", "/img", "quad", "/quad", "ref", "/ref", "box", "/box")


def test_the_added_tokens_are_the_last_of_the_vocabulary(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.convert_tokens_to_ids([f"<{name}>" for name in ADDED])
    size = len(tokenizer)
    assert ids == [*range(size - len(ADDED), size)]
    assert all(tokenizer.added_tokens_decoder[number].special for number in ids)
    config = json.loads((checkpoint / "config.json").read_text())
    assert size <= config["llm_config"]["vocab_size"]


def test_the_seed_decides_the_weights(tmp_path):
    def weights(name: str, seed: int) -> bytes:
        module.make_checkpoint(tmp_path / name, tower_layers=1, layers=1, seed=seed)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("a", 1) == weights("b", 1) != weights("c", 2)


def test_large_checkpoints_come_in_shards(tmp_path, monkeypatch, checkpoint):
    monkeypatch.setattr(random_weights, "_SHARD_BYTES", 4 * 2**20)
    module.make_checkpoint(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 1
    assert {file.name for file in shards} == set(index["weight_map"].values())
    expected = load_file(checkpoint / "model.safetensors")
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, "pt") as file:
            assert torch.equal(file.get_tensor(name), expected.pop(name))
    assert not expected


def test_the_command(tmp_path, capsys):
    out = tmp_path / "new"
    options = "--tower vit_base --tower-layers 1 --layers 3 --heads 2 --kv-heads 1"
    options += " --tile-size 128 --ps-version v1 --dtype float32 --context 999"
    assert main(["make-checkpoint", str(out), *options.split()]) == 0
    assert re.search(r"new: \d+ tensors, [\d.]+ M parameters", capsys.readouterr().out)
    config = json.loads((out / "config.json").read_text())
    assert config["vision_config"]["args"]["model"] == "vit_base_patch16_224"
    assert config["llm_config"]["num_hidden_layers"] == 3
    assert config["ps_version"] == "v1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden-size", "100", "--heads", "3"], "--hidden-size 100 must be a"),
        (["--tile-size", "50"], "force_image_size = 50 is not supported"),
        (["--cpe-max-size", "32"], "cpe_max_size = 32 is not supported"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tmp_path, capsys, options, message):
    assert main(["make-checkpoint", str(tmp_path / "new"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options",
    ["--heads 0", "--kv-heads 0", "--kv-heads -2", "--max-tiles 0", "--max-tiles 999"],
)
def test_sizes_that_are_none_are_named(tmp_path, capsys, options):
    with pytest.raises(SystemExit, match="2"):
        main(["make-checkpoint", str(tmp_path / "new"), *options.split()])
    assert f"argument {options.split()[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["make-checkpoint", str(tmp_path)]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("most", [100, 20_000, 1_000_000])  # JSON, tokenizer, tensors
@pytest.mark.parametrize("empty", [True, False])
def test_of_a_checkpoint_that_cannot_be_written_nothing_stays(tmp_path, most, empty):
    out = tmp_path / "new"
    if empty:
        out.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(OSError, match=str(out)):
            module.make_checkpoint(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.exists() == empty and not [*tmp_path.rglob("*.*")]


@pytest.mark.parametrize("kind", ["embed", "rerank"])
def test_kinds_that_find_and_rank_pages(tmp_path, capsys, kind):
    out = tmp_path / kind
    assert main(["make-checkpoint", "--kind", kind, "--tile-size=32", str(out)]) == 0
    tensors = load_file(out / "model.safetensors")
    assert ("score.weight" in tensors) == (kind == "rerank")
    assert f"{len(tensors)} tensors" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["force_image_size"] == 32


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--kv-heads=1", "--kv-heads is for --kind chat only"),
        ("--tile-size=48", "48 is not a multiple of 32"),
    ],
)
def test_what_does_not_fit_the_kind_is_refused(tmp_path, capsys, option, message):
    out = tmp_path / "out"
    assert main(["make-checkpoint", "--kind=embed", option, str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
