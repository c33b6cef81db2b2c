"""What `nemotron-vl verify` runs on a machine, and what does not fit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.verify.engines import Plan, Run
from nemotron_vl.verify.stages import DTYPES, ENGINES

# Bytes in bfloat16. A machine with half as much again holds those, and not float32.
WEIGHTS = (Path(tiny_checkpoint()) / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "change", [{"torch_dtype": "float32"}, {"torch_dtype": None, "dtype": "float32"}]
)
def test_if_the_own_dtype_does_not_fit_another_runs_all_engines(
    tiny, tmp_path, monkeypatch, change
):
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    memory = SimpleNamespace(total_memory=1.5 * WEIGHTS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    plan = Plan.make(folder, DTYPES, None, "cuda")
    assert plan.served == Run("bfloat16", "compiled")
    assert Run("bfloat16", "encoder-graphs") in plan.runs


def test_a_checkpoint_that_names_its_dtype_as_transformers_5_is_served_in_it(
    tiny, tmp_path
):
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = config.pop("torch_dtype")
    (folder / "config.json").write_text(json.dumps(config))
    assert Plan.make(folder, DTYPES, None, "cpu").served == Run("bfloat16", "eager")


def test_on_a_cpu_a_dtype_that_does_not_fit_is_named(tiny, monkeypatch):
    memory = SimpleNamespace(total=1.5 * WEIGHTS)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    plan = Plan.make(tiny, DTYPES, None, "cpu")
    assert {run.dtype for run in plan.runs} == {"float16", "bfloat16"}
    assert plan.not_run[0].startswith("float32: its weights take 0.0 GB, and the machi")


def test_without_a_gpu_what_does_not_run_is_named(tiny):
    plan = Plan.make(tiny, DTYPES, None, "cpu")
    assert plan.runs == [Run(dtype, "eager") for dtype in DTYPES]
    assert plan.served == Run("bfloat16", "eager")  # the checkpoint's
    reasons = "\n".join(plan.not_run)
    assert "bfloat16, encoder-graphs: needs 1 GPU(s), and there are 0" in reasons
    assert "bfloat16, tensor-parallel: needs 2 GPU(s)" in reasons
    assert Plan.make(tiny, ["float32"], ["compiled"], "cpu").served == Run(
        "float32", "compiled"
    )


def test_on_a_gpu_all_engines_run_and_a_dtype_that_does_not_fit_is_named(
    tiny, monkeypatch
):
    memory = SimpleNamespace(total_memory=1.5 * WEIGHTS)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    plan = Plan.make(tiny, DTYPES, None, "cuda")
    assert plan.runs == [
        Run("float16", "eager"),
        *(Run("bfloat16", name) for name in ENGINES if name != "tensor-parallel"),
    ]
    assert plan.served == Run("bfloat16", "compiled")
    assert plan.not_run[0].startswith("float32: its weights take 0.0 GB")
