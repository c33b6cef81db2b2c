"""What the distribution holds."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOUSES = {"vllm_nemotron_vl": ROOT / "vllm", "nemotron_vl": ROOT / "nemotron_vl"}


def tree() -> set[Path]:
    """The files of both packages, as they are installed."""
    return {
        Path(name, file.relative_to(top))
        for name, top in HOUSES.items()
        for file in top.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_every_folder_of_the_tree_is_packaged():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = set(settings["tool"]["setuptools"]["packages"])
    assert declared == {".".join(file.parent.parts) for file in tree()}


def test_the_wheel_holds_the_tree_and_nothing_of_vllm(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "uv", "build", "-q", "-o", tmp_path, ROOT],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if name.parts[0] in HOUSES} == tree()
    assert not [name for name in names if name.parts[0] == "vllm"]


def test_the_repository_does_not_shadow_vllm():
    code = "import importlib.util as i; print(i.find_spec('vllm').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert "site-packages" in done.stdout
