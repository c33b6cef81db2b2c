"""`tools/export_upstream.py` lays the tree over a vLLM checkout, and it works there."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import vllm

import export_upstream
from support.python_path import with_folders

ROOT = Path(__file__).parents[2]

CODE = """
import vllm
from vllm.plugins.nemotron_vl import register
register()
from vllm import ModelRegistry
model = ModelRegistry.models["Llama_Nemotron_Nano_VL"]
print(vllm.__file__)
print(model.module_name)
cls = model.load_model_cls()
print(cls.__mro__[3].__module__, cls._processor_factory.info.__module__)
info = model.inspect_model_cls()
print(info.supports_multimodal_encoder_tp_data, info.supports_mm_device_do_normalize)

from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
config = EngineArgs(model={checkpoint!r}).create_model_config()
print(type(config.hf_config).__module__)
processor = MULTIMODAL_REGISTRY.create_processor(config)
print(type(processor.info.get_hf_processor()).__module__)

video = ModelRegistry.models["Llama_Nemotron_Nano_VL_Video"]
print(video.module_name, video.load_model_cls().__mro__[1] is cls)

# vLLM's own rows lead to ours.
from vllm.model_executor.models import registry
for name in ("LlamaNemotronVLModel", "LlamaNemotronVLForSequenceClassification"):
    cls = ModelRegistry.models[name].load_model_cls()
    print(registry._VLLM_MODELS[name][0], cls.__module__, cls.__name__)
import sys
print([m for m in sys.modules if m.startswith("vllm_nemotron_vl")])
"""


TABLE = """\
| Architecture | Models | Inputs | Example HF Models | LoRA | PP |
|--------------|--------|--------|-------------------|------|----|
| `InternVLChatModel` | InternVL | T + I<sup>E+</sup> | `InternVL3_5` | ✅︎ | ✅︎ |
| `LlavaForConditionalGeneration` | LLaVA | T + I<sup>E+</sup> | `llava` | | ✅︎ |
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout of vLLM on which the tool has run twice.

    It has links to the installed vLLM's files, and further files that a checkout
    has. `make test-releases` runs these tests on each release served.
    """
    tmp_path = tmp_path_factory.mktemp("checkout")
    installed = Path(vllm.__file__).parent
    for file in installed.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            link = tmp_path / "vllm" / file.relative_to(installed)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    (tmp_path / "docs/models").mkdir(parents=True)
    (tmp_path / "docs/models/supported_models.md").write_text(TABLE)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "vllm"\n')
    tool = [sys.executable, ROOT / "tools" / "export_upstream.py", tmp_path]
    subprocess.run(tool, check=True)
    once = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    subprocess.run(tool, check=True)
    assert once == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    return tmp_path


def test_the_installed_vllm_is_not_changed(checkout):
    config = Path(vllm.__file__).parent / "transformers_utils/config.py"
    assert b"export_upstream" not in config.read_bytes()
    assert (
        b"export_upstream"
        in (checkout / "vllm" / "transformers_utils/config.py").read_bytes()
    )


def test_the_models_file_is_replaced_and_others_keep_their_classes(checkout):
    file = "vllm/model_executor/models/nemotron_vl.py"
    assert (checkout / file).read_bytes() == (ROOT / file).read_bytes()
    processors = checkout / "vllm/transformers_utils/processors/nemotron_vl.py"
    defined = {
        node.name
        for node in ast.parse(processors.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert {"LlamaNemotronVLEmbedProcessor", "NemotronVLProcessor"} <= defined


def test_registry_docs_and_plugin_are_added(checkout):
    registry = (checkout / "vllm/model_executor/models/registry.py").read_text()
    line = '"Llama_Nemotron_Nano_VL": ("nemotron_vl", "LlamaNemotronVLChatModel"),'
    video = '"Llama_Nemotron_Nano_VL_Video": ('
    assert registry.count(line) == registry.count(video) == 1
    rows = (checkout / "docs/models/supported_models.md").read_text().splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == [
        "InternVLChatModel",
        "Llama_Nemotron_Nano_VL",
        "Llama_Nemotron_Nano_VL_Video",
        "LlavaForConditionalGeneration",
    ]
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {
        "nemotron_vl": "vllm.plugins.nemotron_vl:register"
    }
    tests = checkout / "tests/models/multimodal/nemotron_vl"
    for file in tests.rglob("*.py"):
        assert "vllm_nemotron_vl" not in file.read_text()


def test_a_model_that_the_registry_lacks_is_added():
    text = export_upstream.add_to_registry("_MULTIMODAL_MODELS = {\n    # [Decoder]\n}")
    assert text.splitlines()[1].strip().startswith('"Llama_Nemotron_Nano_VL": (')


def test_the_tree_works_laid_over_vllm(checkout, checkpoint, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", CODE.replace("{checkpoint!r}", repr(str(checkpoint)))],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=checkout,
        env={
            "PYTHONPATH": str(checkout),
            "PATH": "/usr/bin:/bin",
            "VLLM_PLUGINS": "",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
        },
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if "INFO" not in line]
    module = "vllm.model_executor.models.nemotron_vl"
    retrieval = f"nemotron_vl_retrieval {module}_retrieval"
    assert lines[-10:] == [
        str(checkout / "vllm" / "__init__.py"),
        module,
        f"vllm.model_executor.models.internvl {module}_processing",
        "True True",
        "vllm.transformers_utils.configs.nemotron_vl",
        "vllm.transformers_utils.processors.nemotron_vl",
        f"{module}_video True",
        f"{retrieval} LlamaNemotronVLForEmbedding",
        f"{retrieval} LlamaNemotronVLForSequenceClassification",
        "[]",
    ]


def run_exported(checkout: Path, *arguments: str) -> str:
    """What pytest says of exported tests, in a checkout whose vLLM is installed."""
    # It takes the place of this distribution, whose plugin would register, too.
    installed = checkout / "vllm_nemotron_vl-0.dist-info"
    installed.mkdir(exist_ok=True)
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-nemotron-vl\nVersion: 0\n"
    )
    (installed / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{export_upstream.ENTRY_POINT}".replace('"', "")
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=checkout / export_upstream.TESTS,
        env=with_folders(checkout),
        capture_output=True,
        text=True,
    )
    told = re.sub(r"^PASSED .*\n", "", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0, told[-20000:]
    return done.stdout


def test_exported_tests_run(checkout):
    """Those that load no engine and no large model; the others are imported."""
    places = ("transformers_utils", "renderers", "test_goldens")
    said = run_exported(checkout, "-rp", "-k", " or ".join(places))
    assert "skipped" not in said
    for place in places:
        assert re.search(rf"PASSED \S*\b{place}\b", said)
    assert re.search(r"\d{4} deselected", said)


@pytest.mark.releases
@pytest.mark.parametrize(
    "folders",
    ["models", "lora multimodal quantization plugins", "entrypoints distributed"],
)
def test_more_exported_tests_run(checkout, folders):
    """Some are skipped by name, such as those that need Triton."""
    said = run_exported(checkout, *folders.split())
    print(said)
    assert re.search(r"\d\d passed", said)
