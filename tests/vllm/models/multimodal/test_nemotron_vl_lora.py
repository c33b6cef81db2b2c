"""Names of the layers of adapters; engines with adapters are in ``tests/vllm/lora``."""

import pytest

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
