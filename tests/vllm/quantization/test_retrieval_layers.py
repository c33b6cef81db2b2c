"""Quantised models that find and rank pages: which layers are quantised.

The published FP8 checkpoints are not known. Those with weights are written as ModelOpt
writes them; the others are built without.
"""

from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import _custom_ops
from vllm.model_executor.layers.linear import LinearBase

from support.loading import load, make_config
from support.quantised import fp8_config, int8_config
from support.quantised_layers import INT8, PLAIN, build, write_fp8
from vllm_nemotron_vl.model_executor.models import nemotron_vl_precision as precision

TOWER = "vision_model.vision_model.encoder.layers"
KINDS = pytest.mark.parametrize("kind", ["embed", "rerank"])


def method(module) -> str:
    return type(module.quant_method).__name__


@KINDS
@pytest.mark.parametrize(
    "ignore",
    [
        ["vision_model*", "mlp1*", "score"],
        ["*vision_model*", "*mlp1*", "*score*"],
        ["model.vision_model*", "model.mlp1*", "score"],
        ["vision_model*"],
    ],
    ids=["parts", "wildcards", "with the part's prefix", "tower alone"],
)
def test_modelopts_fp8(request, with_quantisation, kind, ignore):
    """Weights and scales are found by the checkpoint's names; the connector is never
    quantised."""
    prefix = "model." if kind == "rerank" else ""
    if ignore[0].startswith("model.") and not prefix:
        pytest.skip("the embedding model has no such prefix")
    source = request.getfixturevalue(f"{kind}_checkpoint")
    folder = with_quantisation(source, fp8_config(ignore))
    write_fp8(folder)
    written = load_file(folder / "model.safetensors")

    model = load(make_config(folder, "bfloat16"), pack_weights=False)
    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            quantised = ".layers." in name and name.startswith("language_model.")
            expected = (
                "ModelOptLinearMethod" if quantised else "UnquantizedLinearMethod"
            )
            assert method(module) == expected, name
    layer = model.language_model.model.layers[1].mlp.down_proj
    stored = f"{prefix}language_model.layers.1.mlp.down_proj.weight"
    assert torch.equal(layer.weight.float(), written[stored].float())
    assert torch.equal(layer.weight_scale.flatten(), written[f"{stored}_scale"][None])


@KINDS
def test_a_tower_that_modelopt_has_quantised_is_refused(
    request, with_quantisation, kind
):
    """vLLM never quantises what has ``vision_model`` in its name for ModelOpt."""
    prefix = "model." if kind == "rerank" else ""
    source = request.getfixturevalue(f"{kind}_checkpoint")
    folder = with_quantisation(source, fp8_config(["mlp1*", "score"]))
    write_fp8(folder)
    tensors = load_file(folder / "model.safetensors")
    name = f"{prefix}{TOWER}.0.mlp.fc1"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{name}.weight_scale"] = torch.tensor(1.0)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="encoder.layers.0.mlp.fc1.weight_scale"):
        load(make_config(folder, "bfloat16"), pack_weights=False)


def layers(model, part: str) -> set[str]:
    """The names of the methods or schemes of a part's linear layers."""
    return {
        type(getattr(module, "scheme", module.quant_method)).__name__
        for name, module in model.named_modules()
        if name.startswith(part) and isinstance(module, LinearBase)
    }


@KINDS
@pytest.mark.parametrize("listed", ["layers", "pattern", "path", "nested"])
def test_a_tower_that_is_left_out_is_not_quantised(
    request, with_quantisation, kind, listed
):
    """By each of its layers, by a pattern, or because only the Llama is quantised."""
    source = request.getfixturevalue(f"{kind}_checkpoint")
    prefix = "model." if kind == "rerank" else ""
    inner = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
    ignore = {
        "layers": [
            f"{prefix}{TOWER}.{block}.{name}"
            for block in range(8)
            for name in (*inner, "mlp.fc1", "mlp.fc2")
        ]
        + [f"{prefix}mlp1.1", f"{prefix}mlp1.3"],
        "pattern": ["re:.*vision_model.*", "re:.*mlp1.*"],
        "path": [f"re:^{prefix}vision_model\\.vision_model\\.encoder.*"],
        "nested": [],
    }[listed]
    config = int8_config(ignore=ignore)
    model = build(with_quantisation(source, config, nested=listed == "nested"))
    assert layers(model, "vision_model") == layers(model, "mlp1") == {PLAIN}
    assert layers(model, "language_model.model") == {INT8}
    heads = layers(model, "score"), layers(model, "language_model.score")
    assert heads == (({PLAIN}, {PLAIN}) if kind == "rerank" else (set(), set()))


@KINDS
def test_a_layer_of_the_llama_is_left_out_by_its_name_in_the_checkpoint(
    request, with_quantisation, kind
):
    source = request.getfixturevalue(f"{kind}_checkpoint")
    listed = [r"re:.*language_model\.layers\.1\.mlp\.down_proj"]
    model = build(with_quantisation(source, int8_config(ignore=listed)))
    assert layers(model, "language_model.model.layers.1.mlp.down_proj") == {PLAIN}
    assert layers(model, "language_model.model.layers.0") == {INT8}


@KINDS
def test_scales_that_are_missing_are_named(request, with_quantisation, kind):
    """vLLM computes with what was in the memory."""
    source = request.getfixturevalue(f"{kind}_checkpoint")
    folder = with_quantisation(source, int8_config(ignore=["re:.*vision_model.*"]))
    with pytest.raises(ValueError, match="has no language_model.*weight_scale"):
        load(make_config(folder, "bfloat16"), pack_weights=False)


@KINDS
def test_a_quantised_tower_gets_rows_on_cpus_with_amx(request, with_quantisation, kind):
    """vLLM's kernel takes no tiles."""
    source = request.getfixturevalue(f"{kind}_checkpoint")
    folder = with_quantisation(source, int8_config(ignore=["score"]))
    with mock.patch.object(precision, "has_amx", lambda: True):
        model = build(folder)
    assert layers(model, "vision_model") == {INT8}
    tiles = torch.zeros(2, 3, 8)
    for layer in model.vision_model.modules():
        if isinstance(layer, LinearBase):
            apply = layer.quant_method.apply
            kernel = mock.Mock(side_effect=lambda layer, rows, bias: rows)
            assert apply.func(kernel, layer, tiles).shape == tiles.shape
            assert kernel.call_args.args[1].shape == (6, 8)


@KINDS
def test_online_quantisation_keeps_the_encoder_and_the_head(request, kind):
    source = request.getfixturevalue(f"{kind}_checkpoint")
    model = build(source, quantization="fp8")
    fp8 = "Fp8PerTensorOnlineLinearMethod"
    assert layers(model, "vision_model") == layers(model, "mlp1") == {PLAIN}
    assert layers(model, "language_model.model") == {fp8}
    heads = layers(model, "score"), layers(model, "language_model.score")
    assert heads == (({PLAIN}, {PLAIN}) if kind == "rerank" else (set(), set()))


@KINDS
def test_online_quantisation_computes_the_scales(request, monkeypatch, kind):
    """On a CPU without vLLM's kernel."""
    monkeypatch.setattr(
        _custom_ops,
        "scaled_fp8_quant",
        lambda weight, **_: (weight.to(torch.float8_e4m3fn), torch.ones(1)),
    )
    source = request.getfixturevalue(f"{kind}_checkpoint")
    config = make_config(source, "bfloat16", quantization="fp8")
    model = load(config, pack_weights=False)
    assert layers(model, "vision_model") == {PLAIN}
