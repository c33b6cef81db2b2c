"""What `nemotron-vl doctor` finds in a sound installation and in broken ones."""

import json
import shutil
from importlib import metadata
from types import SimpleNamespace

import pytest

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl import doctor
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.main import main


def states(findings) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def test_this_installation_is_sound(capsys):
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert not [f for f in findings if f["state"] == doctor.PROBLEM]
    found = {finding["what"]: finding["found"] for finding in findings}
    assert "vllm_nemotron_vl.model_executor.models.nemotron_vl" in found["plugin"]
    assert found["vLLM"].startswith("0.32.")


@pytest.fixture
def seen() -> dict:
    """What a process of vLLM's sees in a sound installation."""
    return {
        "torch": "2.13.0",
        "cuda": None,
        "vllm": "0.32.0",
        "platform": "cpu",
        "model": "vllm_nemotron_vl.model_executor.models.nemotron_vl",
    }


@pytest.fixture
def diagnose(monkeypatch, capsys, seen):
    """Run the command in a changed installation; status and printed lines."""

    def run(**changes) -> tuple[int, str]:
        monkeypatch.setattr(doctor, "_look", lambda: {**seen, **changes})
        status = main(["doctor"])
        return status, capsys.readouterr().out

    return run


def test_a_switched_off_plugin(diagnose, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    status, printed = diagnose()
    assert status == 1
    assert "problem  plugin" in printed
    assert "-> unset VLLM_PLUGINS, or add nemotron_vl to it" in printed


def test_the_in_tree_model_in_its_place(diagnose):
    status, printed = diagnose(model="vllm.model_executor.models.nemotron_vl")
    assert status == 1
    assert "is served by vllm.model_executor.models.nemotron_vl" in printed


@pytest.mark.parametrize(
    ("version", "status", "state"),
    [("0.31.2", 1, "problem"), ("0.33.0", 0, "warning"), ("0.32.1", 0, "ok")],
)
def test_other_releases_of_vllm(diagnose, version, status, state):
    found, printed = diagnose(vllm=version)
    assert found == status
    assert f"{state:<8} vLLM" in printed
    assert ('-> pip install "vllm>=0.32,<0.33"' in printed) == (state != "ok")


def test_no_distribution_named_vllm(diagnose, monkeypatch):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)
    status, printed = diagnose()
    assert status == 1
    assert "-> pip install ./tools/vllm_metadata" in printed


def test_a_small_debian(diagnose, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    paths = {"purelib": str(tmp_path), "include": str(tmp_path)}
    monkeypatch.setattr(doctor, "sysconfig", SimpleNamespace(get_path=paths.get))
    status, printed = diagnose()
    assert status == 1
    for package in ("libnuma1", "libpython3", "g++"):
        assert f"-> apt-get install {package}" in printed
    assert "apt-get" not in diagnose(cuda="13.0")[1]


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
