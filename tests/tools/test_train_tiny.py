"""The training of the tiny checkpoint: what it learns and saves, and how it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_tiny
from nemotron_vl.verify.reference import Reference
from tiny_reader.training import Heads, Optimizers, learning_rate

SCRIPT = Path(__file__).parents[2] / "tools" / "train_tiny.py"


def train(fonts: Path, folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, folder, "--fonts", fonts, "--minutes=60"]
    command += ["--batch-tiles=4", "--threads=1", "--log-every=0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def steps_of(state: dict) -> dict[int, int]:
    """How often AdamW, the second of the optimisers, changed each parameter."""
    return {n: int(p["step"]) for n, p in state["optimizers"][1]["state"].items()}


@pytest.mark.releases
def test_training_resumes_and_writes_a_checkpoint(fonts, tmp_path):
    saved, checkpoint = tmp_path / "state.pt", tmp_path / "checkpoint"
    for stale in (tmp_path / "untrained", checkpoint):  # of an interrupted beginning
        stale.mkdir()
        (stale / "config.json").write_text("{")
        (stale / "stale.json").write_text("{")
    done = train(fonts, tmp_path, "--steps=2", "--start-at=0.29999")
    assert done.returncode == 0, done.stderr[-3000:]
    first, exported = torch.load(saved), weights_of(checkpoint)
    names = {file.name for file in checkpoint.iterdir()}
    assert names == {file.name for file in (tmp_path / "untrained").iterdir()}
    assert "stale.json" not in names

    # Without a further step, all is as it was saved. Older states have fewer keys.
    recent = ("left_out", "schedule", "spent")
    torch.save({k: v for k, v in first.items() if k not in recent}, saved)
    done = train(fonts, tmp_path, "--steps=2", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    same = torch.load(saved)
    # The optimisers' states follow. Older states do not tell how much was skipped.
    for key in first.keys() - {"optimizers", "spent"}:
        torch.testing.assert_close(same[key], first[key], rtol=0, atol=0)
    for one, other in zip(same["optimizers"], first["optimizers"], strict=True):
        torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
        assert one["param_groups"] == other["param_groups"]
    torch.testing.assert_close(weights_of(checkpoint), exported, rtol=0, atol=0)

    torch.save(first, saved)
    done = train(fonts, tmp_path, "--steps=3", "--resume", "--start-at=0.6")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from step 2 and second 2160" in done.stdout
    third = torch.load(saved)
    assert third["step"] == 3
    figures = json.loads((tmp_path / "training.json").read_text())
    assert figures["seconds"] == round(third["spent"])
    assert third["seconds"] >= 2160 and third["start_at"] == 0.6
    assert third["spent"] == pytest.approx(
        first["spent"] + third["seconds"] - 2160, abs=0.1
    )
    for name, value in third["model"].items():
        # A step of the full learning rate, 0.002, is much smaller than the weights.
        change = (value - first["model"][name]).square().mean().sqrt()
        assert change < 0.01, name
        assert change > 0 or value.ndim < 2, name
    before = steps_of(first)
    assert max(before.values()) == 2
    assert steps_of(third) == {n: before.get(n, 0) + 1 for n in steps_of(third)}

    # The exported weights are rounded to bfloat16.
    trained = {**Reference.load(checkpoint).state_dict()}
    torch.testing.assert_close(trained, {**third["model"]}, rtol=2**-8, atol=0)
    log = (tmp_path / "training.log").read_text()
    assert log.count("seed 0") == 3


@pytest.mark.releases
def test_a_training_begins_with_given_weights(fonts, tiny, tmp_path):
    """New heads learn to read the embedded tower, and then all learns a little."""
    checkpoint, folder = tmp_path / "first/checkpoint", tmp_path / "second"
    shutil.copytree(tiny, checkpoint)
    checkpoint.with_name("training.log").write_text("log of the first\n")
    options = ("--weights", str(checkpoint), "--start-at=0.5")
    done = train(fonts, folder, "--steps=1", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    (hits,) = re.findall("new heads have hits ([0-9.]+)", done.stdout)
    # Untrained features, or heads that are not trained, give less than 0.1.
    assert float(hits) > 0.4
    log = (folder / "training.log").read_text()
    assert log.startswith("log of the first\nseed 0")
    state = torch.load(folder / "state.pt")
    given = Reference.load(checkpoint).state_dict()
    for name, value in state["model"].items():
        # The warm-up begins with 2 % of the full learning rate, 0.002.
        change = (value - given[name]).abs().max()
        assert change < 1e-3, name
        assert change > 0 or value.ndim < 2, name
    assert 1800 < state["seconds"] < 1800 + state["spent"]
    figures = json.loads((folder / "training.json").read_text())
    assert figures["seconds"] == round(state["spent"])
    assert figures["weights"] == str(checkpoint)

    # The same command continues, without the given weights.
    shutil.rmtree(checkpoint)
    done = train(fonts, folder, "--steps=1", "--resume", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "new heads" not in done.stdout
    again = torch.load(folder / "state.pt")
    assert again["seconds"] == state["seconds"]
    torch.testing.assert_close(again["model"], state["model"], rtol=0, atol=0)


def test_the_learning_rate_warms_up_where_the_training_begins():
    for start in (0.5, 0.84):
        first, warm = (learning_rate(start + x, True, start) for x in (0.0, 0.02))
        assert first < 0.03
        assert warm == learning_rate(start + 0.02, True) > 0.2
    assert learning_rate(0.32, True) == learning_rate(0.32, False) == 1
    assert learning_rate(0.52, False, 0.5) == 1
    assert learning_rate(1.0, False, 0.84) == 0


def test_steps_that_are_not_finite_end_the_training(fonts, tmp_path):
    """The first step is finite, and makes the weights far too large."""
    options = ("--learning-rate=1e30", "--steps=40", "--save-every=0")
    done = train(fonts, tmp_path, *options)
    assert done.returncode != 0
    assert "20 steps in a row had no finite loss or gradient" in done.stderr
    state = torch.load(tmp_path / "state.pt")
    assert state["step"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


@torch.inference_mode(False)  # other tests turn it on
@torch.enable_grad()
def test_a_gradient_that_is_not_finite_changes_nothing(reference):
    heads = Heads(reference.tower.positions.shape[-1])
    optimizers = Optimizers(reference, heads, 0.1)
    before = heads.patch.weight.clone()
    # The loss is 0, the gradient infinite.
    assert not optimizers.step((heads.patch.weight - before).abs().sqrt().sum(), 0.2)
    assert torch.equal(heads.patch.weight, before)
    assert optimizers.step(heads.patch.weight.square().sum(), 0.2)
    assert heads.patch.weight.isfinite().all()
    assert not torch.equal(heads.patch.weight, before)


def test_it_starts_again_with_tcmalloc(monkeypatch):
    started = []
    monkeypatch.setattr(
        train_tiny.ctypes.util, "find_library", lambda name: f"lib{name}.so.4"
    )
    monkeypatch.setattr(
        train_tiny.os,
        "execv",
        lambda path, args: started.append((path, args, os.environ["LD_PRELOAD"])),
    )
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    train_tiny.use_tcmalloc()
    train_tiny.use_tcmalloc()
    preloaded = "libtcmalloc_minimal.so.4:other.so"
    assert started == [(sys.executable, sys.orig_argv, preloaded)]


KILLED = """
import os, signal
from tiny_reader.supply import Supply

supply = Supply(None, 0, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_that_draw_end_with_a_killed_training():
    command = [sys.executable, "-c", KILLED]
    # They have the output open, so this waits for their end.
    done = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("options", "state", "message"),
    [
        (["--resume"], None, "is missing: start without --resume"),
        ([], {}, "exists: use --resume"),
        (["--weights=none"], None, "none is not a checkpoint"),
        (["--resume"], {"weights": "a"}, "of a training with --weights a: use that"),
        (
            ["--resume", "--seed=1", "--minutes=5"],
            {"seed": 0, "minutes": 116.0, "batch_tiles": 96},
            "of a training with --seed 0, --minutes 116.0: use that",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    monkeypatch, tmp_path, options, state, message
):
    if state is not None:
        torch.save({"schedule": state}, tmp_path / "state.pt")
    threads = str(torch.get_num_threads())
    command = ["train_tiny.py", str(tmp_path), "--threads", threads, *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match=message):
        train_tiny.main()
    assert not (tmp_path / "untrained").exists()
