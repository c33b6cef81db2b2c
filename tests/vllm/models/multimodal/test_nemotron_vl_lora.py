"""Names of the layers of adapters; engines with adapters are in ``tests/vllm/lora``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    LANGUAGE_MODEL,
    checkpoint_tensors,
)
from vllm_nemotron_vl.model_executor.models.nemotron_vl_lora import adapter_mapper
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig

LLAMA = "model.layers.0.mlp.up_proj"
QKV = "vision_model.radio_model.model.blocks.0.attn.qkv"
NO_OPTION = (
    "not in the model's language part; others need --enable-tower-connector-lora"
)
HERE = {"encoder": True}


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ({"encoder": False}, f"language_model.{LLAMA}", f"language_model.{LLAMA}"),
        ({"encoder": False}, LLAMA, f"language_model.{LLAMA}"),
        ({"encoder": False}, "mlp1.1", f"'mlp1.1' ({NO_OPTION})"),
        (HERE, "mlp1.1", "mlp1.1"),
        (HERE, QKV, "vision_model.model.encoder.layers.0.attn.qkv"),
        (HERE, "mlp1.2", "'mlp1.2' (not in the model)"),
        (HERE, f"{LLAMA}s", f"'{LLAMA}s' (not in the model)"),
        (
            {"encoder": True, "encoder_is_here": False},
            "mlp1.1",
            "in another process.mlp1.1.o_proj",
        ),
        (
            {"encoder": True, "language_is_here": False},
            LLAMA,
            f"in another process.{LLAMA}.fc1",
        ),
    ],
)
def test_names_of_an_adapters_layers(checkpoint, options, name, expected):
    config = NemotronVLConfig.from_pretrained(checkpoint)
    mapper = adapter_mapper(config, **options)
    (found,) = mapper.apply_list([f"{name}.lora_A.weight"])
    assert found == f"{expected}.lora_A.weight"


@pytest.fixture(scope="module")
def layers(checkpoint) -> list[str]:
    """Of the checkpoint, and as of an adapter that was made for Llama alone."""
    names = checkpoint_tensors(NemotronVLConfig.from_pretrained(checkpoint))
    weights = [n.removesuffix(".weight") for n in names if n.endswith(".weight")]
    return sorted({*weights, *(n.removeprefix(LANGUAGE_MODEL) for n in weights)})


@pytest.fixture(scope="module")
def renamed(checkpoint):
    """A function that renames layers as an engine with all parts does."""
    mapper = adapter_mapper(NemotronVLConfig.from_pretrained(checkpoint), **HERE)

    def rename(layer: str) -> str:
        (found,) = mapper.apply_list([f"{layer}.lora_B.weight"])
        return found.removesuffix(".lora_B.weight")

    return rename


def test_each_layer_has_a_name_of_its_own_that_tells_which_it_is(layers, renamed):
    names = {layer: renamed(layer) for layer in layers}
    back = {}
    for layer, name in names.items():
        assert "'" not in name
        back.setdefault(name, set()).add(layer.removeprefix(LANGUAGE_MODEL))
    assert all(len(same) == 1 for same in back.values())
    parts = {name.partition(".")[0] for name in back}
    assert parts == {"vision_model", "mlp1", "language_model"}


@settings(deadline=None)
@given(data=st.data())
def test_a_name_that_is_nearly_a_layers_is_refused(layers, renamed, data):
    layer = data.draw(st.sampled_from(layers))
    dots = [place for place, letter in enumerate(layer) if letter == "."]
    anywhere = st.integers(0, len(layer))
    place = data.draw(st.sampled_from(dots) | anywhere if dots else anywhere)
    removed = data.draw(st.integers(0, 2))
    added = data.draw(st.text("abm.01_", max_size=2))
    name = layer[:place] + added + layer[place + removed :]
    assert renamed(name).startswith("'") == (name not in layers)
    assert name in layers or renamed(name) == f"'{name}' (not in the model)"


ELSEWHERE = "in another process."


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {LLAMA: f"language_model.{LLAMA}", "mlp1.1": f"'mlp1.1' ({NO_OPTION})"}),
        (
            {"enable_tower_connector_lora": True},
            {LLAMA: f"language_model.{LLAMA}", "mlp1.1": "mlp1.1"},
        ),
        (
            {"enable_tower_connector_lora": True, "mm_encoder_only": True},
            {LLAMA: f"{ELSEWHERE}{LLAMA}.fc1", "mlp1.1": "mlp1.1"},
        ),
        (
            {"enable_tower_connector_lora": True, "limit_mm_per_prompt": {"image": 0}},
            {LLAMA: f"language_model.{LLAMA}", "mlp1.1": f"{ELSEWHERE}mlp1.1.o_proj"},
        ),
    ],
    ids=["language model", "all", "encoder alone", "no images"],
)
def test_a_model_renames_layers_as_its_engine_takes_adapters(
    load_model, checkpoint, options, names
):
    model = load_model(checkpoint, enable_lora=True, **options)
    given = [f"{name}.lora_A.weight" for name in names]
    found = model.hf_to_vllm_mapper.apply_list(given)
    assert found == [f"{name}.lora_A.weight" for name in names.values()]


def test_adapters_are_applied_to_as_many_tokens_as_tower_and_connector_get(
    load_model, checkpoint
):
    model, seen = load_model(checkpoint), []
    for part in (model.vision_model.model.encoder, model.mlp1):
        part.register_forward_pre_hook(
            lambda _, given: seen.append(given[0].shape[:-1].numel())
        )
    tiles = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    model.max_encoder_tiles = len(tiles)
    embeds = model.extract_feature(tiles).flatten(0, 1)
    counts = model.get_mm_lora_token_counts(
        modality="image", mm_kwargs=None, num_mm_embeds=len(embeds)
    )
    assert counts == tuple(seen)
