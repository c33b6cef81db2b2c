"""Quantised checkpoints: which layers are quantised, and how well they read.

``examples/quantize.py`` makes the checkpoints from the embedded one.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (  # noqa: E501
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.torchao import TorchAOConfig, should_skip
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from evaluate_tiny import answer_with_engine, answer_with_reference, draw_questions
from nemotron_vl.checkpoints.inspection import PARTS, inspect
from nemotron_vl.verify.reference import Reference
from support.loading import load, make_config, reload_weights, start_ranks
from support.quantised import int8_config, nvfp4_config
from support.tiny import BLOCKS, LAYERS, TILE, TILE_TOKENS, WIDTH
from typefaces import PILLOW_FONT
from vllm_nemotron_vl.config.nemotron_vl_cpu import has_amx
from vllm_nemotron_vl.model_executor.models import config as model_config
from vllm_nemotron_vl.model_executor.models import nemotron_vl_precision
from vllm_nemotron_vl.model_executor.models.nemotron_vl_weights import (
    checked,
    quantised_parameters,
)

QUANTIZE = next(
    folder / "examples/quantize.py"
    for folder in Path(__file__).parents
    if (folder / "examples/quantize.py").exists()
)
SCHEMES = {
    "int8": ["--scheme=int8"],
    "int8 everywhere": ["--scheme=int8", "--all"],
    "gptq": ["--scheme=gptq"],
    "awq": ["--scheme=awq"],
}
COUNT = 300


@pytest.fixture
def lacks_int4_kernel(monkeypatch):
    """Act like a build of vLLM without the kernel that GPTQ and AWQ need."""
    monkeypatch.setattr(model_config, "has_int4_kernel", lambda: False)


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
            command = [sys.executable, QUANTIZE, tiny, out, *SCHEMES[scheme]]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
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


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        pytest.param("int8", "float32", marks=pytest.mark.releases),
        ("int8 everywhere", "float32"),
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


@pytest.mark.parametrize(("scheme", "name"), [("gptq", "GPTQ"), ("awq", "AWQ")])
def test_gptq_and_awq_are_refused_without_their_kernel(
    quantised, lacks_int4_kernel, scheme, name
):
    with pytest.raises(ValueError, match=f"no kernel for {name} .cpu_gemm_wna16"):
        make_config(quantised(scheme), "float16")


@pytest.mark.parametrize("nested", [False, True], ids=["whole", "language model"])
def test_4_bit_compressed_tensors_are_refused_without_the_kernel(
    tiny, with_quantisation, lacks_int4_kernel, nested
):
    config = int8_config(format="pack-quantized")
    scheme = config["config_groups"]["group_0"]
    scheme["weights"] |= {"num_bits": 4, "strategy": "group", "group_size": 32}
    scheme["input_activations"] = None
    folder = with_quantisation(tiny, config, nested)
    with pytest.raises(ValueError, match="no kernel for 4-bit compressed-tensors"):
        make_config(folder, "float16")


def test_int8_in_float32_is_refused_with_amx(tiny, quantised, monkeypatch):
    """vLLM has another kernel there, whose error would end the engine."""
    monkeypatch.setattr(model_config, "has_amx", lambda: False)
    make_config(quantised("int8"), "float32")
    monkeypatch.setattr(model_config, "has_amx", lambda: True)
    make_config(quantised("int8"), "bfloat16")
    make_config(tiny, "float32")
    with pytest.raises(ValueError, match="AMX.*--dtype bfloat16"):
        make_config(quantised("int8"), "float32")


def test_other_checkpoints_are_served_without_the_kernel(
    quantised, tiny, lacks_int4_kernel
):
    for folder in (tiny, quantised("int8")):
        make_config(folder, "bfloat16")


# Which layers are quantised


def build(folder: Path, dtype: str = "bfloat16", **options) -> torch.nn.Module:
    """Build the model without loading weights."""
    config = make_config(folder, dtype, **options)
    start_ranks(config)
    with (
        set_current_vllm_config(config),
        set_default_torch_dtype(config.model_config.dtype),
        torch.device("meta"),
    ):
        return initialize_model(config)


def methods(model: torch.nn.Module) -> dict[str, Counter]:
    """Count the quantisation methods of the linear layers of each part."""
    found: dict[str, Counter] = {part: Counter() for part in PARTS}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        part = next((p for p, prefix in PARTS.items() if name.startswith(prefix)), None)
        if method is not None and (
            isinstance(module, LinearBase) or name.endswith("lm_head")
        ):
            found[part][type(method).__name__] += 1
    return found


PLAIN = UnquantizedLinearMethod.__name__
DOWN = "language_model.model.layers.0.mlp.down_proj"


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


def expect(language: str, tower=PLAIN, connector=PLAIN, head="") -> dict[str, Counter]:
    decoder = Counter({language: 4 * LAYERS})  # each has four linear layers
    decoder[head or "UnquantizedEmbeddingMethod"] += 1
    return {
        "vision tower": Counter({tower: 4 * BLOCKS}),
        "connector": Counter({connector: 2}),
        "language model": decoder,
    }


INT8 = CompressedTensorsLinearMethod.__name__


@pytest.mark.parametrize(
    ("scheme", "methods_of_parts"),
    [
        ("int8", expect(INT8)),
        ("int8 everywhere", expect(INT8, INT8, INT8)),
        ("gptq", expect("AutoGPTQLinearMethod")),
        ("awq", expect("AutoAWQMarlinLinearMethod")),
    ],
)
@pytest.mark.usefixtures("loads_int4")
def test_layers_are_quantised_as_the_checkpoint_says(
    quantised, scheme, methods_of_parts
):
    assert methods(build(quantised(scheme))) == methods_of_parts


@pytest.fixture
def with_quantisation(tmp_path):
    """Copy a checkpoint with another ``quantization_config``."""

    def write(source: Path, quantisation: dict, nested: bool = False) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "checkpoint"
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        config.pop("quantization_config", None)
        place = config["llm_config"] if nested else config
        place["quantization_config"] = quantisation
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


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


@pytest.mark.parametrize("scheme", ["gptq", "awq", "int8"])
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
    layers = quantised_parameters(model, model.packed_modules_mapping, model.config)
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
        tensors = checked(export(*lacking), model.config, True, False, layers)
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


# Sizes and completeness


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("int8", "float32"),
        ("int8 everywhere", "bfloat16"),
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
    """A trainer's checkpoint has no scales; it is refused before anything changes."""
    folder = quantised("int8 everywhere")
    config = make_config(folder, "bfloat16")
    pixels = torch.rand(1, 3, TILE, TILE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model = load(config)
        before = model.extract_feature(pixels)
        reload = partial(reload_weights, config, model, GPUModelRunner)
        with pytest.raises(ValueError, match="lacks .*weight_scale"):
            reload(weights_path=str(tiny))
        assert torch.equal(model.extract_feature(pixels), before)
        reload(weights_path=str(folder))
        assert torch.equal(model.extract_feature(pixels), before)
