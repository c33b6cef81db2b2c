"""Quantised checkpoints: how well they read, their layers and their sizes.

``examples/quantize.py`` makes the checkpoints from the embedded one.
"""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (  # noqa: E501
    CompressedTensorsLinearMethod,
)
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from evaluate_tiny import answer_with_engine, answer_with_reference, draw_questions
from nemotron_vl.checkpoints.inspection import PARTS, inspect
from nemotron_vl.verify.reference import Reference
from support.forked import run_forked, run_script
from support.loading import load, make_config, reload_weights
from support.quantised_layers import FP8, INT8, build, expect, methods
from support.tiny import BLOCKS, LAYERS, TILE, TILE_TOKENS, WIDTH
from typefaces import PILLOW_FONT
from vllm_nemotron_vl.config.nemotron_vl_cpu import has_amx
from vllm_nemotron_vl.model_executor.models import config as model_config
from vllm_nemotron_vl.model_executor.models import nemotron_vl_precision

QUANTIZE = next(
    folder / "examples/quantize.py"
    for folder in Path(__file__).parents
    if (folder / "examples/quantize.py").exists()
)
SCHEMES = {
    "int8": ["--scheme=int8"],
    "int8 everywhere": ["--scheme=int8", "--all"],
    "fp8": ["--scheme=fp8"],
    "fp8 everywhere": ["--scheme=fp8", "--all"],
    "gptq": ["--scheme=gptq"],
    "awq": ["--scheme=awq"],
}
COUNT = 300


@pytest.fixture
def loads_int4(monkeypatch):
    """Allow GPTQ and AWQ without their kernel: the test loads layers and runs none."""
    monkeypatch.setattr(model_config, "has_int4_kernel", lambda: True)


@pytest.fixture(scope="module")
def quantised(tiny, tmp_path_factory):
    made: dict[str, Path] = {}

    def make(scheme: str) -> Path:
        if scheme not in made:
            out = tmp_path_factory.mktemp("quantised") / "checkpoint"
            command = [*map(str, (QUANTIZE, tiny, out)), *SCHEMES[scheme]]
            if scheme in ("int8", "awq"):  # one of each package that it uses
                command.insert(0, sys.executable)
                done = subprocess.run(command, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-3000:]
            else:
                run_forked(run_script, command, output=out.with_name("output.txt"))
            made[scheme] = out
        return made[scheme]

    return make


# Accuracy


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def questions(reference):
    return draw_questions(PILLOW_FONT, COUNT, seed=1)


@pytest.fixture(scope="module")
def expected(reference, questions) -> list[str]:
    with torch.inference_mode():
        return answer_with_reference(reference, questions)


def accuracy(questions, answers) -> float:
    pairs = zip(questions, answers, strict=True)
    return 100 * sum(q.turns[0][1] == a for q, a in pairs) / COUNT


# There, torch._scaled_mm multiplies 400x256 by 256x1536 in eleven seconds.
SLOW_WITH_AMX = [pytest.mark.releases] if has_amx() else []


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        pytest.param("int8", "float32", marks=pytest.mark.releases),
        ("int8 everywhere", "float32"),
        pytest.param("fp8", "float32", marks=SLOW_WITH_AMX),
        pytest.param("fp8 everywhere", "bfloat16", marks=pytest.mark.releases),
        pytest.param("gptq", "bfloat16", marks=pytest.mark.releases),
        ("awq", "float16"),
    ],
)
def test_reads_within_two_points(
    start_llm, quantised, reference, questions, expected, scheme, dtype
):
    if scheme in ("gptq", "awq") and not model_config.has_int4_kernel():
        pytest.skip(f"This build of vLLM lacks {model_config.INT4_KERNEL}.")
    if scheme.startswith("int8") and has_amx():
        dtype = "bfloat16"  # see test_int8_in_float32_is_refused_with_amx
    llm = start_llm(quantised(scheme), dtype=dtype)
    answers = answer_with_engine(llm, reference, questions)
    assert abs(accuracy(questions, answers) - accuracy(questions, expected)) <= 2


# Layers


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [("int8", torch.float32), ("int8 everywhere", torch.bfloat16)],
)
def test_the_encoder_computes_in_float32_unless_it_is_quantised(
    quantised, emulated_products, scheme, dtype
):
    """On a CPU that emulates bfloat16 products."""
    assert build(quantised(scheme)).encoder_dtype == dtype


def test_int8_layers_of_the_encoder_get_rows_with_amx(quantised, monkeypatch):
    shapes: list[torch.Size] = []

    def apply(self, layer, x, bias=None):
        shapes.append(x.shape)
        return x.new_zeros(*x.shape[:-1], layer.output_size_per_partition)

    monkeypatch.setattr(nemotron_vl_precision, "has_amx", lambda: True)
    monkeypatch.setattr(CompressedTensorsLinearMethod, "apply", apply)
    model = build(quantised("int8 everywhere"))
    features = model.extract_feature(torch.zeros(1, 3, TILE, TILE, device="meta"))
    assert features.shape == (1, TILE_TOKENS, WIDTH)
    assert len(shapes) == 4 * BLOCKS + 2
    assert {len(shape) for shape in shapes} == {2}


@pytest.mark.parametrize(
    ("scheme", "methods_of_parts"),
    [
        ("int8", expect(INT8)),
        ("int8 everywhere", expect(INT8, INT8, INT8)),
        ("fp8", expect(FP8)),
        ("fp8 everywhere", expect(FP8, FP8, FP8)),
        ("gptq", expect("AutoGPTQLinearMethod")),
        ("awq", expect("AutoAWQMarlinLinearMethod")),
    ],
)
@pytest.mark.usefixtures("loads_int4")
def test_layers_are_quantised_as_the_checkpoint_says(
    quantised, scheme, methods_of_parts
):
    assert methods(build(quantised(scheme))) == methods_of_parts


@pytest.mark.parametrize("scheme", ["gptq", "awq", "int8", "fp8"])
@pytest.mark.usefixtures("loads_int4")
def test_a_quantised_language_model_leaves_the_rest_alone(
    quantised, with_quantisation, scheme
):
    """Its ``quantization_config`` in ``llm_config`` does not apply to the tower and
    the connector."""
    source = quantised(scheme)
    config = json.loads((source / "config.json").read_text())["quantization_config"]
    config.pop("modules_to_not_convert", None)
    config.pop("ignore", None)
    expected = methods(build(source))
    folder = with_quantisation(source, config, nested=True)
    assert methods(build(folder)) == expected
    load(make_config(folder, "float16" if scheme == "awq" else "bfloat16"))


def test_fp8_weights_are_the_nearest_values(quantised, tiny):
    """Three bits of mantissa, and steps of 2^-9 next to zero."""
    original = load_file(tiny / "model.safetensors")
    found = load_file(quantised("fp8 everywhere") / "model.safetensors")
    names = [n for n, t in found.items() if t.dtype == torch.float8_e4m3fn]
    assert len(names) == 4 * BLOCKS + 2 + 7 * LAYERS
    for name in names:
        scale = found[f"{name}_scale"]
        assert scale.shape == (len(original[name]), 1)
        weight = original[name].float()
        error = (found[name].float() * scale - weight).abs()
        assert (error <= 1.01 * torch.maximum(weight.abs() / 16, scale / 2**10)).all()


# Sizes and completeness


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("int8", "float32"),
        ("int8 everywhere", "bfloat16"),
        ("fp8", "bfloat16"),
        ("fp8 everywhere", "bfloat16"),
        ("gptq", "bfloat16"),
        ("awq", "float16"),
    ],
)
@pytest.mark.usefixtures("loads_int4", "native_products")
def test_inspect_reports_the_bytes_that_are_loaded(quantised, scheme, dtype):
    folder = quantised(scheme)
    model = load(make_config(folder, dtype), pack_weights=False)
    told = inspect(str(folder), dtype=dtype)
    for part, prefix in PARTS.items():
        mine = [
            parameter
            for name, parameter in model.named_parameters()
            if name.startswith(prefix) and ".self_attn.attn." not in name  # KV scales
        ]
        assert told["parts"][part]["rank_bytes"] == sum(p.nbytes for p in mine)
    assert not told["problems"]


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        ("gptq", "language_model.model.layers.1.mlp.down_proj.", "down_proj.weight"),
        ("int8", "mlp1.1.bias", "mlp1.1.bias"),
        ("int8", "vision_model.radio_model.model.blocks.0.norm1.", "norm1.weight"),
        ("int8 everywhere", "mlp1.3.weight", "mlp1.3.weight"),
    ],
)
@pytest.mark.usefixtures("loads_int4")
def test_incomplete_checkpoints_are_refused(
    quantised, tmp_path, scheme, change, message
):
    folder = tmp_path / "checkpoint"
    shutil.copytree(quantised(scheme), folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith(change)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"lacks .*{message}"):
        load(make_config(folder, "bfloat16"))
    assert message in inspect(str(folder))["problems"][0]


@pytest.mark.parametrize(
    "layer", ["", "language_model.model.layers.1.self_attn.v_proj"]
)
def test_a_checkpoint_without_its_scales_is_refused(quantised, tmp_path, layer):
    """vLLM would multiply with uninitialised memory."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(quantised("int8"), folder)
    tensors = load_file(folder / "model.safetensors")
    scales = {n for n in tensors if n.endswith("_scale") and n.startswith(layer)}
    assert len(scales) == 1 or not layer
    kept = {name: t for name, t in tensors.items() if name not in scales}
    save_file(kept, folder / "model.safetensors")
    message = rf"lacks {len(scales)} of \d+ tensors: .*\.weight_scale"
    with pytest.raises(ValueError, match=message):
        load(make_config(folder, "bfloat16"))


def test_a_reload_from_files_keeps_the_scheme(quantised, tiny):
    """A checkpoint without scales is refused before anything changes."""
    folder = quantised("int8 everywhere")
    config = make_config(folder, "bfloat16")
    pixels = torch.rand(1, 3, TILE, TILE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model = load(config)
        before = model.extract_feature(pixels)
        reload = partial(reload_weights, config, model, GPUModelRunner)
        amx = has_amx()  # else not even its own files
        message = "lacks .*weight_scale" if amx else "takes no new weights"
        with pytest.raises(ValueError, match=message):
            reload(weights_path=str(tiny if amx else folder))
        assert torch.equal(model.extract_feature(pixels), before)
        if amx:
            reload(weights_path=str(folder))
            assert torch.equal(model.extract_feature(pixels), before)
