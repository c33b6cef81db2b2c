"""What the plugin changes in a process of vLLM, and what it leaves alone."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from support.forked import run_forked
from support.other_vllm import other_vllm
from vllm_nemotron_vl.config import nemotron_vl_names as names


def run_python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def test_registering_twice_takes_over_once_and_imports_no_model():
    # A forked process has imported the models.
    result = run_python(
        """
import logging, sys
logging.basicConfig(level=logging.INFO)
from vllm_nemotron_vl.plugins.nemotron_vl import register
register(); register()
from vllm import ModelRegistry
model = ModelRegistry.models["Llama_Nemotron_Nano_VL"]
print(model.module_name, model.class_name)
heavy = ["internvl", "radio", "nemotron_vl", "nemotron_vl_layout"]
print([m for m in sys.modules if m.startswith(("vllm", "vllm_nemotron_vl"))
       and ".models." in m and m.rpartition(".")[2] in heavy])
print("timm" in sys.modules, "vllm_nemotron_vl.renderers.nemotron_vl" in sys.modules)
print([m for m in sys.modules if "nemotron_vl" in m and ".processors." in m])
"""
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    module = "vllm_nemotron_vl.model_executor.models.nemotron_vl"
    assert lines[-4:] == [
        f"{module} LlamaNemotronVLChatModel",
        "[]",
        "False False",
        "[]",
    ]
    logged = (result.stdout + result.stderr).splitlines()
    (line,) = [x for x in logged if "serves the architecture" in x]
    assert names.plugin_version() in line and names.ARCHITECTURE in line


ARCHITECTURES = """
import sys
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm import ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.renderers.registry import RENDERER_REGISTRY
overrides = {overrides!r}
config = EngineArgs(model={checkpoint!r}, hf_overrides=overrides).create_engine_config()
model = config.model_config
processor = MULTIMODAL_REGISTRY.create_processor(model)
processor.get_dummy_mm_inputs({{"image": 1}})
print(ModelRegistry.models[model.architecture].load_model_cls().__name__)
print(RENDERER_REGISTRY.load_renderer_cls(model.tokenizer_mode).__name__)
print([m for m in sys.modules if m.startswith("vllm_nemotron_vl") and any(
    word in m for word in ("video", "decoding", "containers"))])
"""


@pytest.mark.parametrize("video", [False, True])
def test_code_for_videos_is_imported_for_the_video_architecture_only(checkpoint, video):
    overrides = {"architectures": [names.VIDEO_ARCHITECTURE]} if video else {}
    code = ARCHITECTURES.format(checkpoint=str(checkpoint), overrides=overrides)
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    model, renderer, imported = result.stdout.splitlines()[-3:]
    infix = "Video" * video
    assert model == f"LlamaNemotronVL{infix}ChatModel"
    assert renderer == f"NemotronVL{infix}Renderer"
    assert (imported != "[]") == video


def test_the_architecture_may_be_in_the_checkpoint(checkpoint, tmp_path):
    from vllm.engine.arg_utils import EngineArgs

    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["architectures"] = [names.VIDEO_ARCHITECTURE]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = EngineArgs(model=str(tmp_path)).create_model_config()
    assert config.architecture == names.VIDEO_ARCHITECTURE
    assert config.tokenizer_mode == names.VIDEO_TOKENIZER_MODE


def test_importing_the_plugin_imports_neither_torch_nor_vllm():
    result = run_python(
        "import sys, vllm_nemotron_vl.plugins.nemotron_vl\n"
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]"


LOAD = """
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.engine.arg_utils import EngineArgs
ours, other = {checkpoint!r}, {other!r}
for checkpoint, code in ((ours, False), (ours, True), (other, False)):
    try:
        options = dict(skip_tokenizer_init=True, trust_remote_code=code)
        config = EngineArgs(model=checkpoint, **options).create_model_config()
        print("serves", config.architecture)
    except ValueError as error:
        print(" ".join(str(error).split()))
"""


@pytest.fixture(scope="module")
def other_model(checkpoint, tmp_path_factory) -> Path:
    """A checkpoint of another architecture: the language model alone."""
    folder = tmp_path_factory.mktemp("llama")
    llm = json.loads((checkpoint / "config.json").read_text())["llm_config"]
    llm |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(llm))
    return folder


VERSION = {"_version.py": (version("vllm").partition("+")[0], "9.9.0")}
INTERNVL = "model_executor/models/internvl.py"


def load(checkpoint: Path, other: Path, **options) -> list[str]:
    """vLLM's result for our checkpoint without and with remote code allowed, and for
    another model."""
    load = LOAD.format(checkpoint=str(checkpoint), other=str(other))
    result = run_python(load, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-3:]


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        pytest.param(
            VERSION | {INTERNVL: ("_init_mlp1", "_make_mlp1")},
            "it lacks vllm.model_executor.models.internvl.InternVLChatModel._init_mlp1",
            id="an untested release without a method",
        ),
        pytest.param(
            {"renderers/registry.py": ("RENDERER_REGISTRY", "REGISTRY")},
            "RENDERER_REGISTRY",
            id="a tested release that is damaged",
        ),
    ],
)
def test_an_incompatible_vllm_refuses_this_architecture_alone(
    checkpoint, other_model, tmp_path, changes, lacks
):
    """vLLM's in-tree model, which would run remote code, does not take over."""
    environment = other_vllm(tmp_path, changes)
    *refusals, served = load(checkpoint, other_model, env=environment)
    for refused in refusals:
        assert "cannot serve Llama_Nemotron_Nano_VL with vLLM" in refused
        assert lacks in refused
        assert f'Install "{names.tested_requirement()}".' in refused
    assert served == "serves LlamaForCausalLM"


def test_the_chat_model_stands_alone(
    checkpoint, embed_checkpoint, rerank_checkpoint, tmp_path
):
    """A rename among what finds and ranks pages refuses those models alone."""
    code = LOAD.replace(
        "((ours, False), (ours, True), (other, False))",
        f"((ours, True), ({str(embed_checkpoint)!r}, True), (other, False))",
    ).format(checkpoint=str(checkpoint), other=str(rerank_checkpoint))
    renamed = {
        "model_executor/models/config.py": ("LlamaNemotronVLConfig", "LlamaVLConfig")
    }
    result = run_python(code, env=other_vllm(tmp_path, renamed))
    served, *refusals = result.stdout.splitlines()[-3:]
    assert served == "serves Llama_Nemotron_Nano_VL", result.stderr
    for refused in refusals:
        assert "cannot serve LlamaNemotronVLModel and LlamaNemotronVLFor" in refused
        assert "cannot import name 'LlamaNemotronVLConfig'" in refused


def test_a_missing_vllm_is_logged_and_raises_nothing():
    result = run_python(
        "import sys; sys.modules['vllm'] = None\n"
        "from vllm_nemotron_vl.plugins.nemotron_vl import register\nregister()\n"
    )
    assert result.returncode == 0, result.stderr
    lines = [x for x in result.stderr.splitlines() if "vllm-nemotron-vl" in x]
    assert "cannot serve Llama_Nemotron_Nano_VL with" in lines[0]
    assert "cannot serve LlamaNemotronVLModel and Llama" in lines[1]


def test_an_untested_vllm_that_fits_serves_with_one_warning(
    checkpoint, other_model, tmp_path
):
    code = LOAD.format(checkpoint=str(checkpoint), other=str(other_model))
    result = run_python(
        f"{code}\nfrom vllm import ModelRegistry\n"
        "print(ModelRegistry.models['Llama_Nemotron_Nano_VL'].module_name)",
        env=other_vllm(tmp_path, VERSION),
    )
    (warning,) = [x for x in result.stderr.splitlines() if "was tested with" in x]
    assert f"vLLM {names.tested_range()}, not with the installed 9.9.0" in warning
    *served, module = result.stdout.splitlines()[-4:]
    assert served[:2] == ["serves Llama_Nemotron_Nano_VL"] * 2
    assert module.startswith("vllm_nemotron_vl.")


def test_the_plugin_can_be_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "")
    said = run_forked(
        exec,
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm import ModelRegistry\n"
        "print(ModelRegistry.models['Llama_Nemotron_Nano_VL'].module_name)",
        {},
        output=tmp_path / "said.txt",
    )
    assert said.strip().endswith("vllm.model_executor.models.nemotron_vl")
