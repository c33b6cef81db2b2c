"""Publishing a trained checkpoint: only after its evaluation, with its page and log."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import publish_tiny


@pytest.mark.parametrize(
    "case", ["published", "other count", "no engines", "evaluation fails"]
)
def test_only_an_evaluated_checkpoint_is_published(monkeypatch, tmp_path, tiny, case):
    folder, root = tmp_path / "training", tmp_path / "root"
    for part in ("untrained", "checkpoint"):
        shutil.copytree(tiny, folder / part)
    (folder / "checkpoint" / "stale.json").touch()
    figures = {"steps": 1000, "seconds": 1234}
    figures |= {"dtype": "torch.float32", "seed": 0, "weights": "first/checkpoint"}
    (folder / "training.json").write_text(json.dumps(figures))
    (folder / "training.log").write_text("log")
    (root / "embedded").mkdir(parents=True)
    shutil.copy(publish_tiny.PAGE, root / "page.md")
    for name in ("PAGE", "IMAGE", "LOG", "EMBEDDED"):
        path = {"PAGE": "page.md", "EMBEDDED": "embedded"}.get(name, name)
        monkeypatch.setattr(publish_tiny, name, root / path)
    commands = []
    real_run = subprocess.run

    def run(command: list, check: bool) -> None:
        commands.append([str(part) for part in command])
        assert not list((root / "embedded").iterdir())
        if "--wrong" in command:
            if case == "evaluation fails":
                raise subprocess.CalledProcessError(1, command)
            Path(command[command.index("--wrong") + 1]).write_text("image")

    monkeypatch.setattr(publish_tiny.subprocess, "run", run)
    options = {"other count": ["--count=20"], "no engines": ["--reference-only"]}
    monkeypatch.chdir(tmp_path)
    command = ["publish_tiny.py", "training", *options.get(case, [])]
    monkeypatch.setattr(sys, "argv", command)
    before = (root / "page.md").read_text()
    if case == "published":
        publish_tiny.main()
        page = (root / "page.md").read_text()
        assert (
            "After an earlier training, the embedded weights took 1,000 steps" in page
        )
        assert "1,000 steps in 1,234 s in float32" in page
        assert (root / "IMAGE").read_text() == "image"
        assert (root / "LOG").read_text() == "log"
        names = {file.name for file in (root / "embedded").iterdir()}
        assert names == {file.name for file in (folder / "untrained").iterdir()}
        check = ["sha256sum", "--check", "--strict", root / "embedded.sha256"]
        done = real_run(check, cwd=root / "embedded", capture_output=True, text=True)
        assert done.stdout.count(": OK") == len(names), done.stderr
    else:
        with pytest.raises((SystemExit, subprocess.CalledProcessError)):
            publish_tiny.main()
        assert (root / "page.md").read_text() == before
        assert {file.name for file in root.iterdir()} == {"page.md", "embedded"}
    if case == "no engines":
        assert not any("--engine" in command for command in commands)
        return
    quantise, *evaluations = commands
    assert quantise[1:] == [str(publish_tiny.QUANTIZE), *quantise[2:]]
    assert len(evaluations) == 2
    for command in evaluations:
        assert command[2] == str(folder / "checkpoint")
        fonts = command[command.index("--fonts") + 1]
        assert fonts == str(publish_tiny.ROOT / "build/fonts")
        assert command[-1] == f"bfloat16:exact:{quantise[3]}"
