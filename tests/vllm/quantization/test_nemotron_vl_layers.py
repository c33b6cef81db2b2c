"""Which layers are quantised, as lists, targets and vLLM's options say.

The models are built without weights.
"""

from collections import Counter
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.torchao import TorchAOConfig, should_skip

from nemotron_vl.checkpoints.inspection import inspect
from support.loading import load, make_config
from support.quantised import fp8_config, int8_config, nvfp4_config
from support.quantised_layers import INT8, PLAIN, build, expect, methods, write_fp8
from support.tiny import BLOCKS
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import chat_layout
from vllm_nemotron_vl.model_executor.models.nemotron_vl_weights import (
    checked,
    quantised_parameters,
)

DOWN = "language_model.model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("ignore", "quantised_blocks"),
    [
        (["re:.*radio_model.*"], 0),
        ([r"re:vision_model\.radio_model\.model\.blocks\.\d+\..*"], 0),
        ([r"re:.*blocks\.[02]\..*"], BLOCKS - 2),
        (["vision_model.radio_model.model.blocks.3.attn.qkv"], BLOCKS),
    ],
    ids=["part", "path", "blocks", "layer"],
)
def test_ignore_lists_use_the_names_of_the_checkpoint(
    tiny, with_quantisation, ignore, quantised_blocks
):
    config = int8_config(ignore=[*ignore, "language_model.lm_head"])
    model = build(with_quantisation(tiny, config))
    found = methods(model)["vision tower"]
    plain = 4 * (BLOCKS - quantised_blocks) + ignore[0].endswith("qkv")
    assert found == Counter({PLAIN: plain, INT8: 4 * BLOCKS - plain}) - Counter()
    first = model.vision_model.model.encoder.layers[0].mlp.fc1.quant_method
    assert (type(first).__name__ == PLAIN) == (quantised_blocks < BLOCKS)


def test_targets_use_the_names_of_the_checkpoint(tiny, with_quantisation):
    config = int8_config(targets=[r"re:.*radio_model.*mlp\.fc.*", "mlp1.3"])
    found = methods(build(with_quantisation(tiny, config)))
    assert found["vision tower"] == {PLAIN: 2 * BLOCKS, INT8: 2 * BLOCKS}
    assert found["connector"] == {PLAIN: 1, INT8: 1}
    assert INT8 not in found["language model"]


@pytest.mark.parametrize("quantization", ["fp8", "fp8_per_channel"])
def test_online_quantisation_applies_to_the_language_model_only(tiny, quantization):
    method = {
        "fp8": "Fp8PerTensorOnlineLinearMethod",
        "fp8_per_channel": "Fp8PtpcOnlineLinearMethod",
    }[quantization]
    assert methods(build(tiny, quantization=quantization)) == expect(method)
    # Again, because vLLM shares one object between engines for such a short name.
    assert methods(build(tiny, quantization=quantization)) == expect(method)


def test_online_quantisation_obeys_an_explicit_ignore_list(tiny):
    options = dict(
        quantization="fp8_per_tensor",
        quantization_config={"ignore": ["*.radio_model.*blocks.0.*", "mlp1.1"]},
    )
    found = methods(build(tiny, **options))
    fp8 = "Fp8PerTensorOnlineLinearMethod"
    assert found["vision tower"] == {PLAIN: 4, fp8: 4 * (BLOCKS - 1)}
    assert found["connector"] == {PLAIN: 1, fp8: 1}


# Checkpoints of ModelOpt


@pytest.mark.parametrize("cache", [False, True], ids=["", "FP8 cache"])
def test_modelopts_fp8(tiny, with_quantisation, cache):
    """One scale for each weight and one for its inputs."""
    form = fp8_config(["vision_model*", "mlp1*", "language_model.lm_head"])
    if cache:
        form["kv_cache_scheme"] = form["config_groups"]["group_0"]["weights"]
    folder = with_quantisation(tiny, form)
    write_fp8(folder)

    model = load(make_config(folder, "bfloat16"), pack_weights=False)
    assert methods(model) == expect("ModelOptLinearMethod", head=PLAIN)
    for layer in model.language_model.model.layers:
        assert layer.mlp.down_proj.weight.dtype == torch.float8_e4m3fn
        kept = layer.self_attn.attn.kv_cache_dtype
        assert kept == ("fp8_e4m3" if cache else "auto")
    told, plain = inspect(str(folder)), inspect(str(tiny))
    assert not told["problems"]
    assert told["kv_bytes_per_token"] * (1 + cache) == plain["kv_bytes_per_token"]
    mine = [
        parameter.nbytes
        for name, parameter in model.language_model.named_parameters()
        if ".attn." not in name  # KV scales
    ]
    assert told["parts"]["language model"]["rank_bytes"] == sum(mine)


# The layout of the published FP4 variant


@pytest.mark.parametrize(
    ("ignore", "connector"),
    [
        (["vision_model*", "mlp1*", "language_model.lm_head"], PLAIN),
        (["vision_model.radio_model*", "mlp1*", "lm_head"], PLAIN),
        (["*radio_model*", "mlp1.*", "*lm_head"], PLAIN),
        (["vision_model*", "language_model.lm_head"], "ModelOptLinearMethod"),
    ],
    ids=["parts", "paths", "wildcards", "connector quantised"],
)
def test_nvfp4_with_an_fp8_cache(tiny, with_quantisation, ignore, connector):
    """CPUs have no kernel for NVFP4, so the test skips the choice of one."""
    folder = with_quantisation(tiny, nvfp4_config(ignore))
    with mock.patch.object(modelopt, "init_nvfp4_linear_kernel"):
        model = build(folder)
    assert methods(model) == expect(
        "ModelOptLinearMethod", connector=connector, head=PLAIN
    )
    for layer in model.language_model.model.layers:
        attention = layer.self_attn.attn
        assert attention.kv_cache_dtype == "fp8_e4m3"
        assert type(attention.quant_method).__name__ == "ModelOptKVCacheMethod"
        packed = layer.self_attn.qkv_proj.weight
        assert (packed.dtype, packed.shape[1]) == (torch.uint8, 256 // 2)
    told = inspect(str(folder))
    assert told["kv_bytes_per_token"] == inspect(str(tiny))["kv_bytes_per_token"] / 2


@pytest.mark.parametrize("activations", [False, True])
def test_scales_of_activations_are_wanted_where_files_have_some(
    tiny, with_quantisation, activations
):
    """vLLM has a parameter for them also where only weights are quantised."""
    form = nvfp4_config(["vision_model*", "mlp1*", "language_model.lm_head"])
    if not activations:
        form["quant_algo"] = "W4A16_NVFP4"
        del form["config_groups"]["group_0"]["input_activations"]
    with mock.patch.object(modelopt, "init_nvfp4_linear_kernel"):
        model = build(with_quantisation(tiny, form))
    layout = chat_layout(model.config)
    layers = quantised_parameters(model, layout)
    assert {"weight_scale", "weight_scale_2", "input_scale"} <= {*layers[DOWN]}

    def export(*lacking: str):
        for name, tensor in load_file(tiny / "model.safetensors").items():
            layer = name.removesuffix(".weight")
            if layer == name or layer not in layers:
                yield name, tensor
                continue
            yield name, torch.zeros(len(tensor), 1, dtype=torch.uint8)
            for kind in ("weight_scale", "weight_scale_2", "input_scale"):
                has = activations or kind != "input_scale"
                if has and f"{layer}.{kind}" not in lacking:
                    yield f"{layer}.{kind}", torch.zeros(1)

    def load_all(*lacking: str):
        tensors = checked(export(*lacking), layout, True, (), layers)
        return dict(tensors)

    load_all()
    for kind in ["weight_scale"] + ["input_scale"] * activations:
        with pytest.raises(ValueError, match=rf"lacks 1 of \d+ tensors: {DOWN}.{kind}"):
            load_all(f"{DOWN}.{kind}")


def test_nvfp4_is_refused_by_vllm_on_a_cpu(tiny, with_quantisation):
    folder = with_quantisation(tiny, nvfp4_config(["vision_model*", "mlp1*"]))
    with pytest.raises(ValueError, match="Failed to find a kernel .* NVFP4"):
        build(folder)


# Methods that this environment cannot run


def quark_config(**changes) -> dict:
    """Quark's entry in config.json: INT8 weights and activations."""
    eight = {"dtype": "int8", "qscheme": "per_tensor", "is_dynamic": False}
    scheme = {"weight": {**eight, "symmetric": True}, "input_tensors": eight}
    return {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        "global_quant_config": scheme | {"output_tensors": None, "bias": None},
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        **changes,
    }


@pytest.mark.parametrize(
    ("exclude", "plain_blocks"),
    [
        (["re:.*radio_model.*"], BLOCKS),
        (["re:.*blocks.[02].*"], 2),
        (["vision_model.radio_model.model.blocks.3.attn.qkv"], 0.25),
    ],
)
def test_quarks_list_uses_the_names_of_the_checkpoint(
    tiny, with_quantisation, exclude, plain_blocks
):
    folder = with_quantisation(tiny, quark_config(exclude=[*exclude, "lm_head"]))
    found = methods(build(folder))["vision tower"]
    assert found[PLAIN] == 4 * plain_blocks
    assert found.total() == 4 * BLOCKS


@pytest.mark.parametrize(
    ("skipped", "blocks"),
    [
        (["radio_model"], {*range(BLOCKS)}),
        (["vision_model.radio_model.model.blocks.1"], {1}),
        (["blocks.2", "model.blocks.3.attn"], {2}),
        (["locks.0"], set()),
    ],
)
def test_torchaos_list_uses_the_names_of_the_checkpoint(tiny, skipped, blocks):
    model = build(tiny)
    config = TorchAOConfig(None, skipped)
    model._patch_quant_config(model.config, config)

    def skips(layer: str) -> bool:
        return should_skip(layer, config.skip_modules)

    for block in range(BLOCKS):
        prefix = f"vision_model.model.encoder.layers.{block}"
        assert skips(f"{prefix}.mlp.fc1") == (block in blocks)
    assert not skips("mlp1.1")
    assert not skips("language_model.model.layers.0.mlp.down_proj")
