"""No Python file of a checkpoint is imported, even with remote code trusted."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from vllm.engine.arg_utils import EngineArgs

from nemotron_vl.server import serving_process
from support.engines import ONE_PROCESS
from vllm_nemotron_vl.plugins.nemotron_vl import register

# Stands for every Python file of a checkpoint and records its import.
CANARY = """
import pathlib
with open({canary!r}, "a") as file:
    file.write(__name__ + "\\n")
class Anything:
    def __init__(self, *args, **kwargs): pass
    from_pretrained = classmethod(lambda cls, *args, **kwargs: cls())
Llama_Nemotron_Nano_VL_Config = Llama_Nemotron_Nano_VL = Anything
LlamaNemotronNanoVLImageProcessor = NemotronProcessor = NemotronTokenizer = Anything
RADIOConfig = RADIOModel = Anything
"""

# Everything that reads a checkpoint: vLLM's engine, and transformers' Auto classes
# as vLLM calls them.
ENGINE = """
import sys
from PIL import Image
from transformers import AutoConfig, AutoProcessor
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    for model in sys.argv[1:]:
        llm = LLM(model, trust_remote_code={trust}, enforce_eager=True,
                  max_model_len=512, max_num_seqs=2,
                  distributed_executor_backend="{executor}", {options})
        parts = [{{"type": "image_pil", "image_pil": Image.new("RGB", (100, 64))}},
                 {{"type": "text", "text": "?"}}]
        sampling = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
        answer = llm.chat([{{"role": "user", "content": parts}}], sampling)
        assert len(answer[0].outputs[0].token_ids) == 2
        llm.llm_engine.engine_core.shutdown()
        AutoConfig.from_pretrained(model, trust_remote_code={trust})
        AutoProcessor.from_pretrained(model, trust_remote_code={trust})
        print("answered", model)
"""


def engine(trust: bool, options: str = "") -> str:
    return ENGINE.format(trust=trust, options=options, executor=ONE_PROCESS)


HUB_ID = "nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1"


@pytest.fixture
def baited(checkpoint, tmp_path) -> tuple[Path, Path]:
    """A checkpoint in which every ``auto_map`` names a file with a canary.

    It is in a folder and, as `HUB_ID`, in a Hugging Face cache. The cache also has
    the repository that ``vision_config.auto_map`` names.
    """
    canary = tmp_path / "canary.txt"
    code = CANARY.format(canary=str(canary))
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    for name in ("configuration", "modeling", "image_processing", "tokenization"):
        (model / f"{name}.py").write_text(code)

    def edit(file: str, **changes) -> None:
        values = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(values | changes))

    def in_cache(name: str) -> Path:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("0" * 40)
        (repository / "snapshots").mkdir()
        return repository / "snapshots" / ("0" * 40)

    nested = in_cache("nvidia/C-RADIOv2-H")
    nested.mkdir()
    (nested / "hf_model.py").write_text(code)
    (nested / "config.json").write_text("{}")

    processor = "image_processing.NemotronProcessor"
    auto_map = {
        "AutoConfig": "configuration.Llama_Nemotron_Nano_VL_Config",
        "AutoModel": "modeling.Llama_Nemotron_Nano_VL",
        "AutoModelForCausalLM": "modeling.Llama_Nemotron_Nano_VL",
        "AutoProcessor": processor,
    }
    edit("config.json", auto_map=auto_map)
    edit(
        "preprocessor_config.json",
        auto_map={
            "AutoImageProcessor": (
                "image_processing.LlamaNemotronNanoVLImageProcessor"
            ),
            "AutoProcessor": processor,
        },
    )
    edit(
        "tokenizer_config.json",
        auto_map={
            "AutoTokenizer": [None, "tokenization.NemotronTokenizer"],
            "AutoProcessor": processor,
        },
    )
    (model / "processor_config.json").write_text(
        json.dumps({"auto_map": {"AutoProcessor": processor}})
    )
    shutil.copytree(model, in_cache(HUB_ID))
    return model, canary


def run(code: str, tmp_path: Path, *models: object) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(code)
    return subprocess.run(
        [sys.executable, str(script), *map(str, models)],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ
        | {
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
    )


@pytest.mark.parametrize(
    "trust", [True, pytest.param(False, marks=pytest.mark.releases)]
)
def test_engine_and_auto_classes_import_nothing(baited, tmp_path, trust):
    folder, canary = baited
    result = run(engine(trust), tmp_path, folder, HUB_ID)
    for model in (folder, HUB_ID):
        assert f"answered {model}" in result.stdout, result.stderr[-3000:]
    assert not canary.exists(), canary.read_text()


def test_asking_for_the_transformers_backend_imports_nothing(baited, tmp_path):
    """The model is native, so the Transformers backend finds no code to run."""
    model, canary = baited
    code = engine(True, "model_impl='transformers'")
    result = run(code, tmp_path, model)
    assert not canary.exists(), canary.read_text()
    assert "answered" in result.stdout or "Cannot find model module" in result.stderr


# Python's own modules, which an interpreter looks for in the current folder first.
SHADOWS = ("json", "logging", "multiprocessing", "pickle", "torch", "vllm")


def serve_from_its_folder(folder: Path, tmp_path: Path, **variables: str) -> None:
    """Serve a checkpoint whose folder is the current one, without vLLM's caches."""
    env = {"VLLM_CACHE_ROOT": str(tmp_path / "cache"), **variables}
    options = ("--enforce-eager", "--max-model-len=512", "--max-num-seqs=2")
    with (
        serving_process(
            *(".", *options),
            log=tmp_path / "server.log",
            env=env,
            prefix=("env", "-C", str(folder)),
        ) as (_, url),
        urllib.request.urlopen(f"{url}/v1/models") as answer,
    ):
        assert answer.status == 200


def test_a_server_in_the_folder_of_the_checkpoint_imports_nothing(baited, tmp_path):
    folder, canary = baited
    for name in SHADOWS:
        shutil.copy(folder / "modeling.py", folder / f"{name}.py")
    serve_from_its_folder(folder, tmp_path)
    assert not canary.exists(), canary.read_text()


def test_other_folders_do_not_change_the_path(tmp_path, monkeypatch):
    """`PYTHONSAFEPATH` would surprise programs that are started with `python FILE`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    contents = ("{}", "[]", "{", "", "[" * 100_000, '{"architectures": null}')
    for content in (*contents, '{"architectures": ["LlamaForCausalLM"]}'):
        Path("config.json").write_text(content)
        register()
        assert "PYTHONSAFEPATH" not in os.environ
    Path("config.json").unlink()
    os.mkfifo("config.json")
    register()
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.releases
def test_the_bait_works_without_the_plugin(baited, tmp_path):
    """The bait works: vLLM's in-tree model and AutoTokenizer run its code."""
    model, canary = baited
    code = "import os; os.environ['VLLM_PLUGINS'] = ''\n" + engine(True)
    run(code, tmp_path, model)
    assert canary.exists()
    script = (
        "import sys\nfrom transformers import AutoTokenizer\n"
        "AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
    )
    canary.unlink()
    run(script, tmp_path, model)
    assert canary.exists()


def test_the_flag_is_cleared(tiny):
    """AutoProcessor, which vLLM asks for a template, imports the class that
    processor_config.json names with ``processor_class``, if it is trusted."""
    arguments = EngineArgs(model=str(tiny), trust_remote_code=True)
    assert arguments.create_model_config().trust_remote_code is False
