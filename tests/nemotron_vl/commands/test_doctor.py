"""What `nemotron-vl doctor` reports on a sound installation and on broken ones."""

import json
import platform
import shutil
from importlib import metadata
from types import SimpleNamespace

import pytest
import vllm

from nemotron_vl.commands import diagnosis as doctor
from nemotron_vl.main import main
from support.other_vllm import other_vllm
from vllm_nemotron_vl.config import nemotron_vl_cpu
from vllm_nemotron_vl.config import nemotron_vl_names as names


def states(findings) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_this_installation_is_sound(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert not [f for f in findings if f["state"] == doctor.PROBLEM]
    found = {finding["what"]: finding["found"] for finding in findings}
    assert "vllm_nemotron_vl.model_executor.models.nemotron_vl" in found["plugin"]
    assert found["vLLM"].startswith(vllm.__version__)


@pytest.fixture
def seen() -> dict:
    """What a vLLM process sees in a sound installation."""
    return {
        "torch": "2.13.0",
        "cuda": None,
        "vllm": "0.32.0",
        "platform": "cpu",
        "model": "vllm_nemotron_vl.model_executor.models.nemotron_vl",
        "kernels": ["cpu_attention_with_kv_cache", "cpu_gemm_wna16"],
    }


@pytest.fixture
def diagnose(monkeypatch, capsys, seen):
    """Run the command on a changed installation; give its status and its output."""

    def run(**changes) -> tuple[int, str]:
        monkeypatch.setattr(doctor, "_look", lambda: {**seen, **changes})
        status = main(["doctor"])
        return status, capsys.readouterr().out

    return run


def test_each_check_is_printed_when_it_is_known(monkeypatch, capsys):
    printed = []

    def look():
        printed.append(capsys.readouterr().out)
        return {"error": "no vLLM"}

    monkeypatch.setattr(doctor, "_look", look)
    main(["doctor"])
    first, *checks = printed[0].splitlines()
    assert first == "Most checks need vLLM: importing it takes 10 to 30 s."
    assert checks[0].startswith("ok       Python         3.")
    assert any("available" in line for line in checks)
    rest = capsys.readouterr().out
    assert "problem  vLLM           no vLLM\n" in rest and first not in rest


def test_a_switched_off_plugin(diagnose, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    status, printed = diagnose()
    assert status == 1
    assert "problem  plugin" in printed
    assert "-> unset VLLM_PLUGINS, or add nemotron_vl to it" in printed


def test_the_in_tree_model_is_used_instead(diagnose):
    status, printed = diagnose(model="vllm.model_executor.models.nemotron_vl")
    assert status == 1
    assert "is served by vllm.model_executor.models.nemotron_vl" in printed


@pytest.mark.parametrize(
    "tested",
    [
        names.TESTED_VLLM[0],
        (names.TESTED_VLLM[1][0], names.TESTED_VLLM[1][1] - 1),
    ],
)
def test_tested_releases_of_vllm(diagnose, tested):
    status, printed = diagnose(vllm="{}.{}.1".format(*tested))
    assert status == 0
    assert "ok       vLLM" in printed
    assert "pip install" not in printed


def test_a_release_that_was_not_tested(diagnose, monkeypatch):
    version = "{}.{}.0".format(*names.TESTED_VLLM[1])
    cpu, gpu = names.tested_requirement(), names.tested_range()
    status, printed = diagnose(vllm=version)
    assert status == 0
    assert "warning  vLLM" in printed
    command = f"-> tools/install.sh VENV --serve, in a checkout: it installs {cpu}"
    assert command in printed
    monkeypatch.setattr(doctor, "tested_requirement", lambda: f"vllm{gpu}")
    assert f'-> pip install "vllm{gpu}"' in diagnose(vllm=version)[1]


@pytest.fixture
def doctored(tmp_path, monkeypatch) -> None:
    """A copy of vLLM, made of links, that claims to be 9.0.0 and lacks a class."""
    changes = {
        "_version.py": (vllm.__version__, "9.0.0"),
        "model_executor/models/internvl.py": ("InternVLChatModel", "Renamed"),
    }
    environment = other_vllm(tmp_path, changes)
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])


def test_a_release_that_lacks_something(doctored, capsys):
    """The report quotes the plugin's own refusal."""
    assert main(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    for what in ("vLLM", "plugin"):
        (found,) = [f for f in findings if f["what"] == what]
        assert found["state"] == doctor.PROBLEM
        assert "cannot serve Llama_Nemotron_Nano_VL with vLLM 9.0.0" in found["found"]
        assert "vllm.model_executor.models.internvl.InternVLChatModel" in found["found"]
        assert names.tested_requirement() in found["fix"]


def test_a_processor_without_a_kernel_for_gptq(diagnose):
    status, printed = diagnose(kernels=["cpu_attention_with_kv_cache"])
    assert status == 0
    assert "no cpu_gemm_wna16 for this processor: GPTQ and AWQ do not run" in printed
    assert "cpu_gemm_wna16" not in diagnose()[1]
    assert "cpu_gemm_wna16" not in diagnose(cuda="13.0", kernels=[])[1]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_advice_names_instructions_of_this_architecture(diagnose, monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(nemotron_vl_cpu, "processor_flags", lambda: frozenset())
    _, printed = diagnose(kernels=["cpu_attention_with_kv_cache"])
    assert "Serve an INT8 or an unquantised checkpoint" in printed
    assert "--dtype float32" in printed
    assert ("AVX" in printed) == (machine == "x86_64")


def test_kernels_that_are_not_loaded(diagnose):
    status, printed = diagnose(kernels=[])
    assert status == 1
    assert "problem  kernels" in printed


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}])
def test_a_faster_dtype_is_recommended(diagnose, monkeypatch, flags):
    monkeypatch.setattr(nemotron_vl_cpu, "processor_flags", lambda: frozenset(flags))
    status, printed = diagnose()
    assert status == 0
    assert ("-> vllm serve --dtype float32" in printed) == (len(flags) == 1)


@pytest.mark.parametrize(("release", "fits"), [("3.14.8", True), ("3.15.0", False)])
def test_releases_of_python(diagnose, monkeypatch, release, fits):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: release)
    status, printed = diagnose()
    assert status == (not fits)
    assert ("-> create the environment with Python" in printed) == (not fits)


def test_no_distribution_named_vllm(diagnose, monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    status, printed = diagnose()
    assert status == 1
    assert "-> pip install --no-deps ./tools/vllm_metadata" in printed


def test_missing_system_packages(diagnose, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    paths = {"purelib": str(tmp_path), "include": str(tmp_path)}
    monkeypatch.setattr(doctor, "sysconfig", SimpleNamespace(get_path=paths.get))
    status, printed = diagnose()
    assert status == 1
    for package in ("libnuma1", "libpython3", "g++"):
        assert f"-> apt-get install {package}" in printed
    assert "apt-get" not in diagnose(cuda="13.0")[1]


def test_no_shared_memory(diagnose, monkeypatch):
    monkeypatch.setattr(doctor.Path, "is_dir", lambda path: str(path) != "/dev/shm")
    status, printed = diagnose()
    assert status == 0
    assert "there is no /dev/shm" in printed


def test_little_shared_memory(diagnose, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=64 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    status, printed = diagnose()
    assert status == 0
    assert "-> docker run --shm-size 8g" in printed


@pytest.mark.parametrize(
    ("code", "what", "told"),
    [
        ("raise ImportError('libcudart.so is missing')", "vLLM", "libcudart.so"),
        ("import os; os._exit(7)", "vLLM", "ended Python"),
    ],
)
def test_a_vllm_that_cannot_be_imported(tmp_path, monkeypatch, code, what, told):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = list(doctor.examine())
    assert states(findings)[what] == doctor.PROBLEM
    assert told in next(f.found for f in findings if f.what == what)
