"""The contract tool finds what this package uses of vLLM and what a release lacks."""

import gc
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import vllm_contract
from contract.by_hand import ATTRIBUTES
from contract.report import Contract, Release, Reviewed, release
from vllm_nemotron_vl.config.nemotron_vl_names import TESTED_VLLM
from vllm_nemotron_vl.plugins.nemotron_vl_contract import HOOKS

ROOT = Path(__file__).parents[2]
INSTALLED = Path(find_spec("vllm").submodule_search_locations[0])
BEFORE_033 = "3f91a5a"  # the last commit that does not work with 0.33


def source(minor: str) -> Path:
    """The source of a release; `make lint` fetches it."""
    for folder in (ROOT / "build" / "vllm" / minor / "vllm", INSTALLED):
        if (folder / "_version.py").exists() and release(folder).version.startswith(
            f"{minor}."
        ):
            return folder
    pytest.skip(f"needs the files of vLLM {minor}: tools/vllm_source.sh {minor}")


def installed() -> Release:
    return release(INSTALLED)


def doctored(folder: Path, changes: list[tuple[str, str]]) -> Path:
    """A copy of the installed vLLM with names changed, each in one of its files."""
    top = folder / "vllm"
    shutil.copytree(INSTALLED, top, copy_function=os.symlink)
    for path, name in changes:
        text, count = re.subn(rf"\b{name}\b", "renamed", (top / path).read_text())
        assert count
        (top / path).unlink()
        (top / path).write_text(text)
    return top


# `make lint` does the same.
@pytest.mark.releases
@pytest.mark.parametrize("minor", vllm_contract.served())
def test_each_release_served_has_what_was_reviewed(minor):
    reviewed = Reviewed(vllm_contract.REVIEWED)
    report = Contract(release(source(minor)), installed(), ROOT, reviewed).report()
    assert not report.failed, report.text()
    assert len(report.unchanged) > 300


_MODELS = "vllm.model_executor.models"


# Files of vLLM, a name in each, and the use of it that is reported.
RENAMED = {
    ("transformers_utils/config.py", "_CONFIG_ATTRS_MAPPING"): (
        "vllm.transformers_utils.config._CONFIG_ATTRS_MAPPING"
    ),
    ("model_executor/models/interfaces.py", "_mark_tower_model"): (
        f"{_MODELS}.internvl.InternVLChatModel._mark_tower_model"
    ),
    ("tokenizers/hf.py", "CachedHfTokenizer"): "vllm.tokenizers.hf.CachedHfTokenizer",
    ("v1/engine/core_client.py", "engine_dead"): (
        "vllm.v1.engine.core_client.BackgroundResources.engine_dead"
    ),
    ("envs.py", "VLLM_MAX_IMAGE_PIXELS"): "vllm.envs.VLLM_MAX_IMAGE_PIXELS",
    ("model_executor/models/radio.py", "pos_embed"): (
        f"{_MODELS}.radio.ViTPatchGenerator.pos_embed (state)"
    ),
    ("config/multimodal.py", "mm_encoder_tp_mode"): (
        "vllm.config.multimodal.MultiModalConfig.mm_encoder_tp_mode"
    ),
    ("model_executor/models/interfaces.py", "supports_mm_device_do_normalize"): (
        f"{_MODELS}.internvl.InternVLChatModel.supports_mm_device_do_normalize"
    ),
    ("_custom_ops.py", "cpu_gemm_wna16"): "vllm._custom_ops.cpu_gemm_wna16",
    ("outputs.py", "prompt_token_ids"): "vllm.outputs.RequestOutput.prompt_token_ids",
}


@pytest.mark.releases
def test_renamed_symbols_are_named_and_nothing_else(tmp_path):
    vllm = release(doctored(tmp_path, [*RENAMED]))
    reviewed = Reviewed(vllm_contract.REVIEWED)
    report = Contract(vllm, installed(), ROOT, reviewed).report()
    assert {finding.name for finding in report.breaking} == {*RENAMED.values()}
    assert all(finding.places for finding in report.breaking)


@pytest.mark.releases
def test_both_breaks_of_033_are_found_in_the_tree_before_it(tmp_path):
    vllm = release(source("0.33"))
    command = ["git", "archive", BEFORE_033, "vllm"]
    try:
        archive = subprocess.check_output(command, cwd=ROOT)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip(f"needs git and the history: commit {BEFORE_033}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(tmp_path, filter="data")
    reviewed = Reviewed(tmp_path / "none.json")
    contract = Contract(vllm, installed(), tmp_path, reviewed, by_hand=False)
    norm = "vllm.model_executor.layers.fusion.mm_input_norm.FusedMMInputNorm"
    processors = "vllm.transformers_utils.processors.internvl"
    assert {finding.name for finding in contract.report().breaking} == {
        f"{norm}.weight (state)",
        f"{norm}.bias (state)",
        f"{processors}.InternVLImageProcessor",
        f"{processors}.InternVLProcessor",
    }


VLLM = {
    "_version.py": "__version__ = version = '0.99.0'",
    "layers.py": """
import torch

class Base:
    def run(self, x, *, scale=1):
        "Words."
        return self.inner(x) * scale

    def inner(self, x):
        return x

class Norm(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.register_buffer("weight", torch.ones(size))
        self.bias = torch.nn.Parameter(torch.zeros(size))
""",
    "__init__.py": "from .layers import Base as Exported",
}
CONSUMER = """
from vllm import Exported
try:
    from vllm.layers import Newer
except ImportError:  # vLLM < 0.99
    from vllm.layers import Norm as Newer

class Ours(Exported):
    def __init__(self):
        self.norm = Newer(4)

    def run(self, x, *, scale=1):
        return super().run(x, scale=scale)

    def load(self, w, b):
        self.norm.load_state_dict({"weight": w, "bias": b})
"""


@pytest.fixture
def check(tmp_path, capsys):
    """A function that runs the tool on a small package and a wheel of a small vLLM."""
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "ours.py").write_text(CONSUMER)

    def run(*options, old="", new="", requires="torch==1"):
        wheel = tmp_path / ("new.whl" if old else "vllm.whl")
        with zipfile.ZipFile(wheel, "w") as file:
            for name, text in VLLM.items():
                file.writestr(f"vllm/{name}", text.replace(old, new) if old else text)
            metadata = f"Name: vllm\nRequires-Dist: {requires}\n"
            file.writestr("vllm-0.99.0.dist-info/METADATA", metadata)
        arguments = ["--tree", str(tmp_path), "--no-table", "--json", *options]
        arguments += ["--reviewed", str(tmp_path / "reviewed.json")]
        arguments += ["--against", str(tmp_path / "vllm.whl")]
        often = gc.get_threshold()
        status = vllm_contract.main([str(wheel), *arguments])
        assert gc.get_threshold() == often
        return status, json.loads(capsys.readouterr().out)

    return run


def names(findings):
    return [finding["name"] for finding in findings]


def test_a_changed_docstring_is_no_change(check):
    status, report = check()
    assert status == 1 and not report["breaking"]
    assert "vllm.layers.Base.inner" in names(report["behavioural"])
    assert check("--accept-all")[0] == 0
    status, report = check(old='"Words."', new='"Others."')
    assert status == 0 and "vllm.layers.Base.run" in report["unchanged"]


@pytest.mark.parametrize(
    "old, new, name, problem",
    [
        (
            "class Norm",
            "class Other",
            "vllm.layers.Norm",
            "missing",
        ),
        (
            "torch.ones(size))",
            "torch.ones(size), persistent=False)",
            "vllm.layers.Norm.weight (state)",
            "missing",
        ),
        (
            "torch.nn.Parameter(torch.zeros(size))",
            "torch.zeros(size)",
            "vllm.layers.Norm.bias (state)",
            "missing",
        ),
        (
            "scale=1",
            "scale=1, axis=0",
            "vllm/ours.py:12",
            'incompatible with supertype "vllm.layers.Base"',
        ),
        ("def run", "def start", "vllm.layers.Base.run", "missing"),
        ("(self, size)", "(self, size, *, eps)", "vllm/ours.py:10", 'argument "eps"'),
    ],
)
def test_what_breaks_is_named(check, old, new, name, problem):
    check("--accept-all")
    status, report = check(old=old, new=new)
    assert status == 1
    assert names(report["breaking"]) == [name]
    assert problem in report["breaking"][0]["what"]


def test_a_changed_body_is_shown_and_accepted_by_name(check, tmp_path):
    check("--accept-all")
    change = {"old": "return x", "new": "return x + 1"}
    status, report = check(**change)
    assert status == 1 and not report["breaking"]
    assert names(report["behavioural"]) == ["vllm.layers.Base.inner"]
    diff = report["behavioural"][0]["diff"]
    assert "-    return x\n+    return x + 1" in diff
    assert check("--accept", "vllm.layers.Base.inner", **change)[0] == 0
    assert check(**change)[0] == 0
    with pytest.raises(SystemExit) as stop:
        check("--accept", "vllm.layers.Base.outer")
    assert stop.value.code == 2


def test_other_requirements_are_reported_and_fail_nothing(check):
    check("--accept-all")
    status, report = check(requires="torch==2")
    assert status == 0
    assert report["dependencies"][0]["what"] == "==2, was ==1"


def test_a_folder_without_vllm_is_a_wrong_call(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        vllm_contract.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "no vLLM" in capsys.readouterr().err


def test_digests_are_stored_and_no_source():
    reviewed = Reviewed(vllm_contract.REVIEWED)
    digests = {d for known in reviewed.symbols.values() for d in known.values()}
    assert all(re.fullmatch(r"-|[0-9a-f]{12}", digest) for digest in digests)


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_attributes_listed_by_hand_are_used_by_that_file(path):
    text = (ROOT / path).read_text()
    for attribute in ATTRIBUTES[path]:
        assert re.search(rf"\b{attribute.rpartition('.')[2]}\b", text), attribute


def test_the_tool_derives_the_hooks_checked_at_run_time():
    reviewed = Reviewed(vllm_contract.REVIEWED)
    uses = Contract(installed(), installed(), ROOT, reviewed).uses
    methods = {name.rpartition(".")[2] for name, use in uses.items() if use.needed}
    assert {m for hooks in HOOKS.values() for m in hooks} <= methods


def test_no_mark_is_older_than_the_releases_served():
    assert not [*vllm_contract.stale_marks(ROOT, TESTED_VLLM[0])]


def test_old_marks_are_found(tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "old.py").write_text(
        "a = 1  # vLLM < 0.31: gone\nb = 2  # vLLM < 0.32\nc = 'vLLM < 0.30'\n"
        "# because of vLLM < 0.9\n"
    )
    found = [*vllm_contract.stale_marks(tmp_path, (0, 31))]
    assert [line.split(":")[1] for line in found] == ["1", "4"]
