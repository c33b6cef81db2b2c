"""The names that a vLLM lacks are found in its source files."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from vllm_nemotron_vl.plugins import nemotron_vl as plugin
from vllm_nemotron_vl.plugins import nemotron_vl_contract


def fake_release(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("takes", "lacks"),
    [
        ("from vllm.moved import old", ["vllm.moved.old"]),
        ("from vllm.moved import new", []),
        ("from vllm.moved import Aliased, starred, lazy_if", []),
        ("from vllm import moved", []),
        ("from vllm.gone import anything", ["vllm.gone.anything"]),
        (
            "try:\n from vllm.moved import old\n"
            "except ImportError:\n from vllm.moved import new as old",
            [],
        ),
        (
            "try:\n from vllm.moved import old\n"
            "except ImportError:\n from vllm.moved import older",
            ["vllm.moved.old"],
        ),
        ("def late():\n    from vllm.moved import old", ["vllm.moved.old"]),
    ],
)
def test_the_contract_compares_imports_with_definitions(
    tmp_path, monkeypatch, takes, lacks
):
    monkeypatch.setattr(nemotron_vl_contract, "HOOKS", {})
    vllm = fake_release(
        tmp_path / "vllm",
        {
            "__init__.py": "",
            "moved/__init__.py": "from .part import *\nimport os as Aliased\n"
            "new: int = 1\nif new:\n    lazy_if = 2\n",
            "moved/part.py": "starred = 1\n",
        },
    )
    package = fake_release(tmp_path / "package", {"ours.py": takes})
    assert nemotron_vl_contract.missing(vllm, package) == lacks
    (package / "ours.py").rename(package / "ours_retrieval.py")
    assert nemotron_vl_contract.missing(vllm, package) == lacks
    assert nemotron_vl_contract.missing(vllm, package, retrieval=False) == []


def test_methods_may_be_of_base_classes_elsewhere(tmp_path, monkeypatch):
    names = ("own", "later", "near", "far", "gone")
    monkeypatch.setattr(nemotron_vl_contract, "HOOKS", {("vllm.a", "A"): names})
    vllm = fake_release(
        tmp_path / "vllm",
        {
            "__init__.py": "",
            "a.py": "from .part.b import B as Base\nfrom vllm.c import Near\n"
            "class A(Near[int], Base):\n def own(self): ...\n"
            " async def later(self): ...",
            "c.py": "class Near:\n def near(self): ...\n",
            "part/__init__.py": "",
            "part/b.py": "class B:\n def far(self): ...\n",
        },
    )
    package = fake_release(tmp_path / "package", {"ours.py": ""})
    assert nemotron_vl_contract.missing(vllm, package) == ["vllm.a.A.gone"]


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ([], None),
        (["a"], "it lacks a."),
        (["a", "b", "c"], "it lacks a, b, c."),
        (["a", "b", "c", "d", "e", "f", "g", "h"], "it lacks a, b, c and 5 more."),
    ],
)
def test_a_refusal_names_three_of_the_names(monkeypatch, lacks, said):
    monkeypatch.setattr(nemotron_vl_contract, "missing", lambda place, retrieval: lacks)
    found = plugin.refusal("9.9")
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize("places", [None, [], ["/nowhere"]])
def test_a_vllm_without_files_is_not_installed(monkeypatch, places):
    spec = None
    if places is not None:
        spec = ModuleSpec("vllm", None)
        spec.submodule_search_locations = places
    monkeypatch.setattr(plugin, "find_spec", lambda name: spec)
    monkeypatch.setattr(nemotron_vl_contract, "missing", lambda *a, **k: [])
    found = plugin.refusal("9.9")
    assert ("it is not installed" in str(found)) == (not places)
