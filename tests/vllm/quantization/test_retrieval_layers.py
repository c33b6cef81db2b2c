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

from nemotron_vl.checkpoints.random_retrieval import make_retrieval_checkpoint
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.loading import load, make_config
from support.noise import noise
from support.quantised import fp8_config, int8_config
from support.quantised_layers import INT8, PLAIN, build, write_fp8, write_int8
from vllm_nemotron_vl.config.nemotron_vl_cpu import has_amx
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
@pytest.mark.parametrize(
    "listed", ["layers", "pattern", "path", "path of transformers 5", "nested"]
)
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
        "path of transformers 5": [f"re:^{prefix}vision_model\\.encoder.*"],
        "nested": [],
    }[listed]
    config = int8_config(ignore=ignore)
    model = build(with_quantisation(source, config, nested=listed == "nested"))
    assert layers(model, "vision_model") == layers(model, "mlp1") == {PLAIN}
    assert layers(model, "language_model.model") == {INT8}
    assert layers(model, "score") == ({PLAIN} if kind == "rerank" else set())


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
    with pytest.raises(ValueError, match=r"lacks .*language_model\.layers.*_scale"):
        load(make_config(folder, "bfloat16"), pack_weights=False)


@KINDS
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_each_scale_of_a_merged_layer_is_wanted(request, with_quantisation, kind, part):
    source = request.getfixturevalue(f"{kind}_checkpoint")
    folder = with_quantisation(source, fp8_config(["vision_model*", "mlp1*", "score"]))
    write_fp8(folder)
    tensors = load_file(folder / "model.safetensors")
    (name,) = (n for n in tensors if f"layers.1.self_attn.{part}_proj.weight_s" in n)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"lacks 1 of \d+ tensors: {name}"):
        load(make_config(folder, "bfloat16"), pack_weights=False)


@pytest.mark.parametrize("listed", ["MLP", "attention"])
def test_an_mlp_of_the_published_width_is_never_quantised(
    tmp_path, with_quantisation, monkeypatch, listed
):
    """vLLM's SigLIP leaves it plain where 64 does not divide the width, as with 4304.

    If the attention is left out, too, the tower computes as an unquantised one.
    """
    make_retrieval_checkpoint(
        tmp_path / "wide", ranks=False, vision_options={"intermediate_size": 136}
    )
    monkeypatch.setattr(precision, "has_native_products", lambda dtype: False)
    part = {"MLP": "mlp", "attention": "self_attn"}[listed]
    config = int8_config(ignore=[rf"re:.*vision_model.*{part}.*"])
    model = build(with_quantisation(tmp_path / "wide", config))
    assert layers(model, "language_model.model") == {INT8}
    block = f"{TOWER}.0"
    assert layers(model, f"{block}.mlp") == {PLAIN}
    quantised = listed == "MLP"
    assert layers(model, f"{block}.self_attn") == {INT8 if quantised else PLAIN}
    assert model.encoder_dtype == (torch.bfloat16 if quantised else torch.float32)


@pytest.mark.parametrize("part", ["language model", "both"])
def test_int8_embeds_as_the_reference_with_its_weights(
    start_llm, embed_checkpoint, with_quantisation, part
):
    """But for the activations, which vLLM rounds to INT8 for each token."""
    whole = part == "both"
    tower = [] if whole else ["re:.*vision_model.*"]
    config = int8_config(ignore=[*tower, "re:.*mlp1.*"])
    folder = with_quantisation(embed_checkpoint, config)
    reference = RetrievalReference(embed_checkpoint)
    for name, values in write_int8(folder, tower=whole).items():
        reference.get_parameter(reference.own_name(name)).copy_(values)
    llm = start_llm(
        folder,
        dtype="bfloat16" if has_amx() else "float32",
        mm_processor_kwargs=None,
        max_model_len=1024,
    )
    found = llm.apply_model(lambda model: layers(model, "vision_model"))
    assert found == [{INT8} if whole else {PLAIN}]
    for text, images in (
        ("query: what is the total?", []),
        ("passage: <image> The total.", [noise(130, 90)]),
    ):
        prompt = {"prompt": text, "multi_modal_data": {"image": images}}
        (output,) = llm.embed([prompt if images else text], use_tqdm=False)
        vector = torch.tensor(output.outputs.embedding)
        expected = reference.pooled(text, images)
        assert torch.cosine_similarity(vector, expected, dim=0) > 0.9995, text


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
    assert layers(model, "score") == ({PLAIN} if kind == "rerank" else set())


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
