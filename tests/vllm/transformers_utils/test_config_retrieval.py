"""The configurations of the models that find and rank pages."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, SiglipVisionConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.transformers_utils.config import get_config

from vllm_nemotron_vl.plugins.nemotron_vl import register
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_retrieval import (
    NemotronVLBidirectionalConfig,
    NemotronVLEmbedConfig,
    NemotronVLRerankConfig,
)

register()


def read(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(params=["embed", "rerank"])
def folder(request) -> Path:
    return request.getfixturevalue(f"{request.param}_checkpoint")


@pytest.mark.parametrize("trust", [True, False])
def test_no_remote_code_is_asked_for(folder, trust):
    """Each `auto_map` names a file that the folder does not have."""
    config = get_config(str(folder), trust_remote_code=trust)
    assert type(config) in (NemotronVLEmbedConfig, NemotronVLRerankConfig)
    assert isinstance(config.llm_config, NemotronVLBidirectionalConfig)
    assert isinstance(config.vision_config, SiglipVisionConfig)
    assert config.text_config is config.llm_config
    assert not hasattr(config, "auto_map")
    assert not hasattr(config.llm_config, "auto_map")


def test_a_saved_configuration_has_the_published_keys(folder, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    renamed_or_default = {"torch_dtype", "id2label", "label2id"}
    assert read(folder).keys() - read(tmp_path).keys() <= renamed_or_default
    again = AutoConfig.from_pretrained(tmp_path)
    config.name_or_path = again.name_or_path = ""
    assert again.to_dict() == config.to_dict()


def model_config(folder: Path, **changes):
    return EngineArgs(model=str(folder), hf_overrides=changes).create_model_config()


@pytest.mark.parametrize("value", [True, False, None])
def test_tokens_see_each_other_and_are_averaged(folder, value):
    """The published code does not read the key; in its ranking model it is false."""
    config = model_config(folder, bidirectional_attention=value)
    assert config.attn_type == "encoder_only"
    assert config.pooler_config.seq_pooling_type == "MEAN"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pooling": None},
            "the key 'pooling' is missing or null; supported: 'avg', 'cls'",
        ),
        ({"pooling": "weighted"}, "pooling = 'weighted' is not supported"),
        ({"ps_version": None}, "the key 'ps_version' is missing"),
        ({"select_layer": -2}, "select_layer = -2 is not supported; supported: -1"),
        ({"query_prefix": "question:"}, "query_prefix = 'question:' is not"),
        ({"downsample_ratio": 0.3}, "downsample_ratio = 0.3 is not supported"),
        ({"downsample_ratio": None}, "'downsample_ratio' is missing or null; supp"),
        ({"force_image_size": 96}, "force_image_size = 96 .*image_size 64 "),
        ({"vision_config": {"hidden_size": 10**9}}, "vision_config.hidden_size = "),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        model_config(folder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Without the key, transformers counts two labels.
        ({"llm_config": {"id2label": {0: "a", 1: "b"}}}, "have 1 and 2"),
        ({"id2label": {0: "a", 1: "b"}}, "have 2 and 1"),
        ({"temperature": 2.0}, "temperature = 2.0 is not supported; supported: 1"),
        ({"prompt_template": None}, "the key 'prompt_template' is missing"),
    ],
)
def test_what_would_be_ranked_wrongly_is_refused(rerank_checkpoint, changes, message):
    with pytest.raises(ValueError, match=message):
        model_config(rerank_checkpoint, **changes)


def test_a_temperature_in_the_file_is_read(rerank_checkpoint, tmp_path):
    copy = shutil.copytree(rerank_checkpoint, tmp_path / "copy")
    values = read(copy) | {"temperature": 0.5}
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="temperature = 0.5 is not supported"):
        model_config(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaNemotronVLModel"]}, "LlamaNemotronVLModel; .*_vl'"),
        (
            {"architectures": ["Llama_Nemotron_Nano_VL"]},
            "with the architecture Llama_Nemotron_Nano_VL; supported: 'Llama_Nemo",
        ),
        ({"model_type": "llama_nemotron_vl"}, "'llama_nemotron_vl' is not supported"),
        (
            {"vision_config": {"model_type": "siglip2_vision_model"}},
            "vision_config.model_type = 'siglip2_vision_model' is not supported; "
            "supported: 'siglip_vision_model'",
        ),
        ({"llm_config": {"model_type": "llama"}}, "llm_config.model_type = 'llama' is"),
    ],
)
def test_types_that_do_not_belong_together(
    rerank_checkpoint, tmp_path, change, message
):
    """vLLM calls the hook of the architecture, but reads the type's configuration."""
    copy = shutil.copytree(rerank_checkpoint, tmp_path / "copy")
    values = read(copy)
    for key, value in change.items():
        inner = values.get(key)
        values[key] = inner | value if isinstance(value, dict) else value
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        model_config(copy)


def test_a_broken_section_is_named():
    with pytest.raises(ValueError, match="config.json cannot be used"):
        NemotronVLEmbedConfig.from_dict({"llm_config": {"hidden_size": "wide"}})


def test_they_generate_nothing(embed_checkpoint):
    """vLLM alone ends in an assertion without words."""
    engine = EngineArgs(str(embed_checkpoint), runner="generate")
    with pytest.raises(ValueError, match="generates no text: leave out --runner"):
        engine.create_model_config()
