"""The tree laid over vLLM's own: the shape of a contribution upstream."""

import subprocess
import sys
from pathlib import Path

import vllm

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
print(cls.__mro__[1].__module__, cls._processor_factory.info.__module__)
info = model.inspect_model_cls()
print(info.supports_multimodal_encoder_tp_data, info.supports_mm_device_do_normalize)

from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
config = EngineArgs(model={checkpoint!r}).create_model_config()
print(type(config.hf_config).__module__)
processor = MULTIMODAL_REGISTRY.create_processor(config)
print(type(processor.info.get_hf_processor()).__module__)

# Files that vLLM has keep what it has in them.
print(ModelRegistry.models["LlamaNemotronVLModel"].load_model_cls().__name__)
import sys
print([m for m in sys.modules if m.startswith("vllm_nemotron_vl")])
"""


def lay_over(target: Path) -> None:
    """Link the installed vLLM and put our tree over it.

    A file that vLLM has under the same name gets ours appended: ours adds
    definitions and replaces one class.
    """
    installed = Path(vllm.__file__).parent
    for file in installed.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            link = target / file.relative_to(installed)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    for file in (ROOT / "vllm").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            laid = target / file.relative_to(ROOT / "vllm")
            laid.parent.mkdir(parents=True, exist_ok=True)
            theirs = laid.read_bytes() if laid.exists() else b""
            laid.unlink(missing_ok=True)
            laid.write_bytes(theirs + file.read_bytes())


def test_the_tree_works_laid_over_vllm(tmp_path, checkpoint):
    lay_over(tmp_path / "vllm")
    result = subprocess.run(
        [sys.executable, "-c", CODE.replace("{checkpoint!r}", repr(str(checkpoint)))],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "VLLM_PLUGINS": "",
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
        },
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if "INFO" not in line]
    module = "vllm.model_executor.models.nemotron_vl"
    assert lines[-8:] == [
        str(tmp_path / "vllm" / "__init__.py"),
        module,
        f"vllm.model_executor.models.internvl {module}",
        "True True",
        "vllm.transformers_utils.config",
        "vllm.transformers_utils.processors.nemotron_vl",
        "LlamaNemotronVLForEmbedding",
        "[]",
    ]
