"""The native configuration: what it reads, keeps and refuses."""

import copy
import json
import pickle
import shutil

import pytest
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig
from vllm.transformers_utils.config import _CONFIG_ATTRS_MAPPING, get_config
from vllm.transformers_utils.configs.radio import RadioConfig

from nemotron_vl.checkpoints.inspection import inspect
from vllm_nemotron_vl.plugins.nemotron_vl import register
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import (
    NemotronVLConfig,
    NemotronVLVisionConfig,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_checks import (
    PS_VERSION_ASSUMED,
    check_servable,
)

register()


@pytest.fixture
def values(checkpoint) -> dict:
    """Content of the checkpoint's config.json; tests may change it."""
    return json.loads((checkpoint / "config.json").read_text())


def with_key(values: dict, path: str, value: object) -> dict:
    changed = copy.deepcopy(values)
    *parents, last = path.split(".")
    section = changed
    for key in parents:
        section = section[key]
    section[last] = value
    return changed


def test_vllm_finds_llm_config_as_text_config(checkpoint):
    assert _CONFIG_ATTRS_MAPPING["llm_config"] == "text_config"
    config = get_config(str(checkpoint), trust_remote_code=False)
    assert isinstance(config, NemotronVLConfig)
    assert isinstance(config.llm_config, LlamaConfig)
    assert config.text_config is config.llm_config
    assert config.get_text_config().num_attention_heads == 4


def test_the_mapping_is_restored_where_vllm_lacks_it(monkeypatch):
    from vllm_nemotron_vl.transformers_utils.config import register_nemotron_vl_config

    monkeypatch.delitem(_CONFIG_ATTRS_MAPPING, "llm_config")
    register_nemotron_vl_config()
    assert _CONFIG_ATTRS_MAPPING["llm_config"] == "text_config"


def test_the_tower_is_read_from_cradio_args(values):
    values["vision_config"].pop("num_hidden_layers")
    values["vision_config"]["args"].update(
        model="vit_huge_patch16_224", cpe_max_size=2048, unknown_option=[1]
    )
    values["vit_hidden_size"] = 1280
    config = NemotronVLConfig.from_dict(values)
    vision = config.vision_config
    assert isinstance(vision, RadioConfig)
    assert (vision.hidden_size, vision.num_hidden_layers) == (1280, 32)
    assert (vision.num_attention_heads, vision.intermediate_size) == (16, 5120)
    assert (vision.cpe_max_size, vision.register_multiple) == (2048, 8)
    assert len(vision.teachers) == 4 and vision.cls_token_per_teacher
    assert vision.image_size == config.force_image_size
    check_servable(config)


def test_unknown_keys_survive_saving_and_loading(values, tmp_path):
    values["made_up"] = {"a": [1, 2]}
    values["vision_config"]["made_up"] = "x"
    values["vision_config"]["args"]["made_up"] = 3.5
    values["llm_config"]["made_up"] = None
    first = NemotronVLConfig.from_dict(copy.deepcopy(values))
    first.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for section in (saved, NemotronVLConfig.from_pretrained(tmp_path).to_dict()):
        assert section["made_up"] == values["made_up"]
        assert section["vision_config"]["made_up"] == "x"
        assert section["vision_config"]["args"] == values["vision_config"]["args"]
        assert section["auto_map"] == values["auto_map"]
        assert (
            section["vision_config"]["auto_map"] == values["vision_config"]["auto_map"]
        )
        assert "text_config" not in section
        assert section["llm_config"]["vocab_size"] == values["llm_config"]["vocab_size"]


@pytest.mark.parametrize("given", ["v1", "v2", None])
def test_an_absent_pixel_shuffle_stays_absent(values, tmp_path, given):
    del values["ps_version"]
    if given:
        values["ps_version"] = given
    first = NemotronVLConfig.from_dict(values)
    first.save_pretrained(tmp_path)
    second = NemotronVLConfig.from_pretrained(tmp_path)
    assert first.ps_version == second.ps_version == (given or "v1")
    saved = json.loads((tmp_path / "config.json").read_text())
    for section in (saved, second.to_dict(), vars(pickle.loads(pickle.dumps(second)))):
        assert section.get("ps_version") == given


@pytest.mark.parametrize(
    ("given", "overrides", "warned"),
    [(None, {}, True), ("v1", {}, False), (None, {"ps_version": "v1"}, False)],
    ids=str,
)
def test_an_assumed_pixel_shuffle_is_said(
    values, checkpoint, tmp_path, monkeypatch, given, overrides, warned
):
    from vllm.engine.arg_utils import EngineArgs

    from vllm_nemotron_vl.model_executor.models import config as module

    shutil.copytree(checkpoint, tmp_path / "copy")
    del values["ps_version"]
    if given:
        values["ps_version"] = given
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning_once", said.append)
    folder = str(tmp_path / "copy")
    EngineArgs(model=folder, hf_overrides=overrides).create_model_config()
    assert {*said} == ({PS_VERSION_ASSUMED} if warned else set())
    assert (PS_VERSION_ASSUMED in inspect(folder)["notes"]) == (given is None)


def test_no_attribute_invites_remote_code(values):
    config = NemotronVLConfig.from_dict(values)
    assert not hasattr(config, "auto_map")
    assert not hasattr(config.vision_config, "auto_map")


def test_it_pickles_and_builds_without_arguments(values):
    config = NemotronVLConfig.from_dict(values)
    again = pickle.loads(pickle.dumps(config))
    assert again.to_dict() == config.to_dict()
    for config_class in (NemotronVLConfig, NemotronVLVisionConfig):
        assert isinstance(config_class(), PreTrainedConfig)


def test_transformers_reads_it_with_vllms_attention_option(checkpoint):
    config = AutoConfig.from_pretrained(
        checkpoint, attn_implementation="eager", trust_remote_code=True
    )
    assert type(config) is NemotronVLConfig


@pytest.mark.parametrize(
    "path",
    [
        "llm_config",
        "vision_config",
        "vision_config.args",
        "vision_config.args.model",
        "vision_config.args.cpe_max_size",
        "vision_config.patch_size",
        "force_image_size",
        "downsample_ratio",
        "vit_hidden_size",
        "projector_hidden_size",
    ],
)
def test_a_missing_key_is_named(values, path):
    *parents, last = path.split(".")
    section = values
    for key in parents:
        section = section[key]
    del section[last]
    with pytest.raises(ValueError, match=rf"config.json: the key '{path}' is missing"):
        NemotronVLConfig.from_dict(values)


def test_a_key_of_the_wrong_type_is_named(values):
    with pytest.raises(ValueError, match="force_image_size must be of type int.*'512'"):
        NemotronVLConfig.from_dict(with_key(values, "force_image_size", "512"))


@pytest.mark.parametrize(
    ("path", "value", "supported"),
    [
        ("vision_config.args.model", "vit_giant_patch14", "vit_huge_patch16_224"),
        ("image_tag_type", "nvlm", "'internvl'"),
        ("ps_version", "v3", "'v1', 'v2'"),
        ("vision_config.vitdet_window_size", 16, "full attention"),
        ("vision_config.adaptor_names", ["clip"], "backbone"),
        ("vision_config.feature_normalizer_config", {"a": 1}, "features"),
        ("vision_config.args.cpe_num_registers", 4, "register_multiple"),
        ("vision_config.args.model_norm", True, "no norm behind its blocks"),
        ("force_image_size", 500, "multiple of"),
        ("downsample_ratio", 1 / 3, "1, 0.5, 0.25"),
        ("downsample_ratio", 0, "1, 0.5, 0.25"),
        ("vision_config.args.cpe_max_size", 32, "at least force_image_size"),
        ("vit_hidden_size", 1280, "vit_small_patch16_224 has 384"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(values, path, value, supported):
    check_servable(NemotronVLConfig.from_dict(values))
    config = NemotronVLConfig.from_dict(with_key(values, path, value))
    with pytest.raises(ValueError) as error:
        check_servable(config)
    assert path in str(error.value)
    assert repr(value) in str(error.value)
    assert supported in str(error.value)


def test_the_position_grid_may_be_that_of_a_tile(values):
    path = "vision_config.args.cpe_max_size"
    values = with_key(values, path, values["force_image_size"])
    check_servable(NemotronVLConfig.from_dict(values))


def test_the_callers_values_are_left_alone(values):
    values["llm_config"]["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    before = copy.deepcopy(values)
    NemotronVLConfig(**values)
    assert values == before


@pytest.mark.parametrize("value", [None, "false", 0])
def test_an_overridden_convention_of_the_corners_must_be_a_bool(values, value):
    config = NemotronVLConfig.from_dict(values)
    config.vision_config.pos_embed_align_corners = value  # --hf-overrides
    message = "pos_embed_align_corners must be of type bool"
    with pytest.raises(ValueError, match=message):
        check_servable(config)


def test_a_tile_size_that_contradicts_the_preprocessor_is_refused(values):
    config = NemotronVLConfig.from_dict(values)
    check_servable(config, {"image_size": 64})
    with pytest.raises(ValueError, match="preprocessor_config.json: image_size = 128"):
        check_servable(config, {"image_size": 128})


def test_vllm_refuses_at_load(values, checkpoint, tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(
        json.dumps(with_key(values, "image_tag_type", "nvlm"))
    )
    with pytest.raises(ValueError, match="image_tag_type = 'nvlm' is not supported"):
        EngineArgs(model=str(tmp_path)).create_model_config()
