"""The plain configuration, read without transformers, equals the class."""

import copy
import functools
import json
from operator import attrgetter

import pytest
from vllm.transformers_utils.configs.radio import VIT_TIMM_DIM_BY_NAME

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.reference import RadioTower
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    checkpoint_tensors,
    head_size,
    num_prefix_tokens,
    tensor_parallel_problems,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_checks import (
    check_servable,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import read_config
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_towers import TOWER_DIMS

TOWERS = [name.removesuffix("_patch16_224") for name in TOWER_DIMS]
SIZES = (
    "force_image_size",
    "projector_hidden_size",
    "vision_config.patch_size",
    "vision_config.hidden_size",
    "vision_config.intermediate_size",
    "vision_config.num_hidden_layers",
    "vision_config.num_attention_heads",
    "llm_config.vocab_size",
    "llm_config.hidden_size",
    "llm_config.intermediate_size",
    "llm_config.num_hidden_layers",
    "llm_config.num_attention_heads",
    "llm_config.num_key_value_heads",
    "llm_config.head_dim",
    "llm_config.max_position_embeddings",
)
READ = (
    *SIZES,
    "ps_version",
    "vit_hidden_size",
    "vision_config.model_name",
    "vision_config.image_size",
    "vision_config.qkv_bias",
    "vision_config.norm_mean",
    "vision_config.norm_std",
    "vision_config.cpe_max_size",
    "vision_config.register_multiple",
    "vision_config.teachers",
    "vision_config.cls_token_per_teacher",
    "llm_config.attention_bias",
    "llm_config.mlp_bias",
    "llm_config.tie_word_embeddings",
)


def read(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def refusal(build, values: dict) -> str | None:
    """Why a configuration cannot be served, or None."""
    try:
        check_servable(build(copy.deepcopy(values)))
    except ValueError as error:
        return str(error)
    return None


def assert_both_read_the_same(values: dict) -> None:
    plain = read_config(copy.deepcopy(values))
    config = NemotronVLConfig.from_dict(copy.deepcopy(values))
    for path in READ:
        assert attrgetter(path)(plain) == attrgetter(path)(config), path
    assert checkpoint_tensors(plain) == checkpoint_tensors(config)
    assert head_size(plain.llm_config) == head_size(config.llm_config)
    prefixes = map(num_prefix_tokens, (plain.vision_config, config.vision_config))
    assert len({*prefixes}) == 1
    for ranks in (2, 3, 8):
        assert tensor_parallel_problems(
            plain, ranks, False
        ) == tensor_parallel_problems(config, ranks, False)
    assert refusal(read_config, values) == refusal(NemotronVLConfig.from_dict, values)


def test_tower_sizes_equal_vllms():
    assert {name: VIT_TIMM_DIM_BY_NAME[name] for name in TOWER_DIMS} == TOWER_DIMS


def test_the_embedded_checkpoint(tiny):
    assert_both_read_the_same(read(tiny))


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower(tmp_path, tower):
    make_checkpoint(tmp_path, tower=tower, tower_layers=1, layers=1)
    values = read(tmp_path)
    assert_both_read_the_same(values)
    del values["vision_config"]["num_hidden_layers"]
    assert_both_read_the_same(values)


@pytest.mark.parametrize(
    "left_out",
    [
        ["ps_version", "image_tag_type", "tie_word_embeddings"],
        ["llm_config.head_dim"],
        ["llm_config.num_key_value_heads"],
        ["llm_config.vocab_size", "llm_config.max_position_embeddings"],
        ["llm_config.num_hidden_layers", "llm_config.intermediate_size"],
        ["llm_config.hidden_size", "llm_config.num_attention_heads"],
        ["llm_config.attention_bias", "llm_config.mlp_bias"],
        ["llm_config.tie_word_embeddings"],
        ["vision_config.args.register_multiple"],
        ["vision_config.args.teachers", "vision_config.args.cls_token_per_teacher"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("null", [False, True], ids=["left out", "null"])
def test_incomplete_files(checkpoint, left_out, null):
    values = read(checkpoint)
    for path in left_out:
        *parents, last = path.split(".")
        section = values
        for key in parents:
            section = section[key]
        del section[last]
        if null:
            section[last] = None
    expected = refusal(NemotronVLConfig.from_dict, values)
    assert refusal(read_config, values) == expected
    if expected is None:
        assert_both_read_the_same(values)
    assert null or expected is None


TEACHERS = [{"name": name} for name in ("clip", "dino", "sam", "dino")]  # 3 names


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ({}, 3),
        ({"register_multiple": None}, 3),
        ({"register_multiple": 0}, 3),
        ({"register_multiple": 8}, 8),
        ({"register_multiple": 2}, 4),
        ({"register_multiple": 3}, 6),
        ({"register_multiple": 1}, 4),
        ({"register_multiple": 8, "cls_token_per_teacher": False}, 8),
        ({"register_multiple": 1, "cls_token_per_teacher": False}, 2),
        ({"cls_token_per_teacher": False, "teachers": None}, 1),
    ],
    ids=str,
)
def test_the_number_of_prefix_tokens(checkpoint, args, tokens):
    """C-RADIO's rule: a number that divides is filled up by a whole multiple."""
    values = read(checkpoint)
    its_args = values["vision_config"]["args"]
    del its_args["register_multiple"]
    its_args.update({"cls_token_per_teacher": True, "teachers": TEACHERS} | args)
    assert_both_read_the_same(values)
    assert num_prefix_tokens(read_config(values).vision_config) == tokens
    assert len(RadioTower(values["vision_config"]).prefix) == tokens


WRONG = (None, True, 3, -1, 10**18, 0.5, "x", [1], {"a": 1}, [])


@pytest.mark.parametrize(
    "path",
    [
        *SIZES,
        *("downsample_ratio", "vit_hidden_size", "ps_version", "image_tag_type"),
        *("llm_config", "vision_config", "vision_config.args", "quantization_config"),
        *("vision_config.args.model", "vision_config.args.cpe_max_size"),
        *("vision_config.args.teachers", "vision_config.args.register_multiple"),
        *("vision_config.vitdet_window_size", "vision_config.adaptor_names"),
        *("llm_config.attention_bias", "llm_config.mlp_bias", "llm_config.hidden_act"),
        *("llm_config.tie_word_embeddings", "llm_config.rms_norm_eps"),
        "llm_config.quantization_config",
    ],
)
def test_wrong_values_get_the_same_message(checkpoint, path):
    values = read(checkpoint)
    *parents, last = path.split(".")
    for wrong in WRONG:
        changed = copy.deepcopy(values)
        section = changed
        for key in parents:
            section = section[key]
        section[last] = wrong
        expected = refusal(NemotronVLConfig.from_dict, changed)
        assert refusal(read_config, changed) == expected, wrong


@pytest.mark.parametrize("value", [None, "auto", 1.5, [512, 512]], ids=str)
@pytest.mark.parametrize("key", ["image_size", "model_name"])
def test_keys_of_the_tower_that_are_not_read(checkpoint, key, value):
    """The file's `force_image_size` and `args.model` take their place."""
    values = read(checkpoint)
    values["vision_config"][key] = value
    assert_both_read_the_same(values)
    assert refusal(read_config, values) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("quantization_config", 3, "must be of type dict or null, but is 3"),
        ("force_image_size", 0, "must be a whole number from 1 to 4096"),
        ("llm_config.head_dim", "x", "of type int, from 1 to 4096, but is 'x'"),
        ("downsample_ratio", "x", "of type int or float, but is 'x'"),
    ],
)
def test_messages_say_what_is_allowed(checkpoint, path, value, message):
    values = read(checkpoint)
    *parents, last = path.split(".")
    section = values
    for key in parents:
        section = section[key]
    section[last] = value
    assert message in refusal(read_config, values)


def test_a_file_that_is_no_object():
    with pytest.raises(ValueError, match="the file must be of type dict"):
        read_config([1])


@pytest.mark.parametrize("name", ["num_key_value_heads", "head_dim"])
def test_a_built_configuration_has_no_defaults(checkpoint, name):
    config = NemotronVLConfig.from_dict(read(checkpoint))
    check_servable(config)
    setattr(config.llm_config, name, None)
    with pytest.raises(ValueError, match=f"llm_config.{name} must be of type int"):
        check_servable(config)


@pytest.mark.parametrize(
    ("path", "largest"),
    [
        ("force_image_size", 4096),
        ("projector_hidden_size", 1 << 20),
        ("vision_config.patch_size", 1024),
        ("vision_config.hidden_size", 1 << 16),
        ("vision_config.intermediate_size", 1 << 20),
        ("vision_config.num_hidden_layers", 1024),
        ("vision_config.num_attention_heads", 1024),
        ("llm_config.vocab_size", 1 << 24),
        ("llm_config.hidden_size", 1 << 20),
        ("llm_config.intermediate_size", 1 << 20),
        ("llm_config.num_hidden_layers", 1024),
        ("llm_config.num_attention_heads", 4096),
        ("llm_config.num_key_value_heads", 4096),
        ("llm_config.head_dim", 4096),
        ("llm_config.max_position_embeddings", 1 << 22),
    ],
)
def test_sizes_are_refused_from_the_next_after_the_largest(checkpoint, path, largest):
    """The largest one may be refused for what it does not fit."""
    values = read(checkpoint)
    *parents, name = path.split(".")
    place = functools.reduce(dict.__getitem__, parents, values)
    cause = f"must be a whole number from 1 to {largest}."
    for value, refused in ((largest, False), (largest + 1, True), (0, True)):
        place[name] = value
        said = refusal(read_config, values) or ""
        assert (f"{path} = {value} is not supported; it {cause}" in said) == refused
