"""`nemotron-vl verify --against remote-code`, with a stand-in for published code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemotron_vl.commands import verify as command
from nemotron_vl.main import main
from nemotron_vl.verify import remote_comparison

CODE = Path(__file__).parents[2] / "support" / "remote_code"
MAIN, EARLIER = "1" * 40, "2" * 40
NO_CORNERS = ("ALIGN_CORNERS = True", "ALIGN_CORNERS = False")
NO_PACKAGE = ("import torch\n", "import no_such_package\nimport torch\n")
Edit = tuple[str, str]


@pytest.fixture
def published(tiny, tmp_path, monkeypatch) -> Callable[..., Path]:
    """Lays out both repositories, with one text of a file replaced by another."""
    monkeypatch.setattr(command, "_ENVIRONMENT", {})
    # The reference would take a process of its own.
    monkeypatch.setattr(remote_comparison, "run_elsewhere", lambda f, *args: f(*args))
    second = tmp_path / "hub" / "models--nvidia--C-RADIOv2-H"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(second.parent))
    monkeypatch.setenv("REMOTE_CODE_MARKER", str(tmp_path / "imported"))

    def code(name: str, folder: Path, edit: Edit | None) -> None:
        text = (CODE / name).read_text()
        if edit:
            assert edit[0] in text
            text = text.replace(*edit, 1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def make(tower: Edit | None = None, connector: Edit | None = None) -> Path:
        model = shutil.copytree(tiny, tmp_path / "model")
        code("configuration.py", model, None)
        code("modeling.py", model, connector)
        code("hf_model.py", second / "snapshots" / MAIN, tower)
        code("hf_model.py", second / "snapshots" / EARLIER, None)
        (second / "refs").mkdir()
        (second / "refs" / "main").write_text(MAIN)
        return model

    return make


def verify(model: Path, *options: str) -> tuple[int, dict, str]:
    """Exit status, results and text of a comparison on two tiles."""
    out = model.parent / "out"
    options = (*options, "--images", "price", "receipt.jpg", "--out", str(out))
    against = ["--against", "remote-code", "--trust-remote-code"]
    status = main(["verify", str(model), *against, *options])
    results = json.loads((out / "results.json").read_text())
    return status, results, (out / "results.md").read_text()


def test_the_same_code_agrees_in_a_process_without_vllm(published, tmp_path):
    status, results, text = verify(published())
    assert status == 0 and results["ok"] and results["failed"] == []
    found = results["remote_code"]
    assert [(row["stage"], row["dtype"]) for row in found["rows"]] == [
        ("tower", "float32"),
        ("connector", "float32"),
    ]
    assert found["code"][1] == {
        "repository": "nvidia/C-RADIOv2-H",
        "commit": MAIN,
        "files": ["hf_model.py"],
    }
    assert found["code"][0]["files"] == ["configuration.py", "modeling.py"]
    assert "The checkpoint's own code and the reference agree." in text
    assert (tmp_path / "imported").read_text() == ""  # no module of vLLM
    assert results["not_run"] == []  # no engine was asked for


def test_the_other_convention_of_corners_is_named(published):
    model = published(tower=NO_CORNERS)
    status, results, text = verify(model)
    found = results["remote_code"]
    assert status == 1 and not results["ok"] and results["failed"] == []
    assert found["wrong"] == ["tower"]
    assert "pos_embed_align_corners is false" in found["messages"][0]
    assert "--code-revision" in found["messages"][1]
    assert "The checkpoint's own code computes another tower." in text
    assert found["messages"][0] in text
    assert found["messages"][0] in (model.parent / "out/report.html").read_text()


def test_a_revision_of_the_second_repository_is_run(published):
    model = published(tower=NO_CORNERS)
    status, results, _ = verify(model, "--code-revision", EARLIER)
    assert status == 0
    assert results["remote_code"]["code"][1]["commit"] == EARLIER


def test_a_tower_of_neither_convention_gets_no_message_about_corners(published):
    status, results, _ = verify(published(tower=("eps=1e-6", "eps=1e-2")))
    assert status == 1
    assert results["remote_code"]["wrong"] == ["tower"]
    assert results["remote_code"]["messages"] == []


@pytest.mark.parametrize(
    "change",
    [
        ("(0, 1, 3, 2, 4, 5)", "(0, 3, 1, 2, 4, 5)"),  # version 1 of the pixel shuffle
        ("nn.GELU()", 'nn.GELU("tanh")'),
        ("nn.LayerNorm(merged)", "nn.LayerNorm(merged, eps=1e-3)"),
    ],
)
def test_another_connector_is_named_alone(published, change):
    status, results, text = verify(published(connector=change))
    assert status == 1
    assert results["remote_code"]["wrong"] == ["connector"]
    assert "The checkpoint's own code computes another connector." in text


def test_nothing_is_imported_without_consent(published, tmp_path, capsys):
    model = published()
    assert main(["verify", str(model), "--against", "remote-code"]) == 2
    error = capsys.readouterr().err
    assert f"code of {model} and of nvidia/C-RADIOv2-H." in error
    assert "add --trust-remote-code" in error
    assert not (tmp_path / "imported").exists()


def test_a_missing_package_is_named(published):
    status, results, text = verify(published(tower=NO_PACKAGE))
    assert status == 1
    assert len(results["failed"]) == 2
    for failed in results["failed"]:
        assert "pip install no_such_package" in failed
    assert "pip install no_such_package" in text


def test_a_connector_that_does_not_run_leaves_the_tower(published):
    status, results, _ = verify(published(connector=NO_PACKAGE))
    assert status == 1
    (failed,) = results["failed"]
    assert failed.startswith("remote code, connector: ImportError")
    assert [row["stage"] for row in results["remote_code"]["rows"]] == ["tower"]
    assert results["remote_code"]["wrong"] == []


def test_code_that_ends_its_process_is_reported_with_what_it_printed(published):
    end = ("import torch\n", "import os\nprint('bye', flush=True)\nos._exit(3)\n")
    status, results, _ = verify(published(tower=end))
    assert status == 1
    assert results["failed"] == ["remote code, process: bye"]


def test_tensors_that_the_code_does_not_know_are_named(published):
    model = published()
    file = model / "model.safetensors"
    name = "vision_model.radio_model.model.blocks.0.extra"
    save_file({**load_file(file), name: torch.zeros(1)}, file)
    status, results, _ = verify(model)
    assert status == 1
    assert all("blocks.0.extra" in failed for failed in results["failed"])
    assert len(results["failed"]) == 2 and results["remote_code"]["rows"] == []
