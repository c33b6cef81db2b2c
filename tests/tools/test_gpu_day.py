"""`tools/gpu_day.sh` takes under an hour, and says what failed and what did not run."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def gpu_day(*arguments, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "tools" / "gpu_day.sh", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_all_steps_take_under_an_hour():
    lines = gpu_day("--list").stdout.split()
    minutes = dict(line.split(":") for line in lines)
    assert {"tests", "verify", "bench-serve", "lmms-eval"} <= minutes.keys()
    assert sum(map(int, minutes.values())) < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tiny, tmp_path):
    done = gpu_day(tiny, tmp_path / "results")
    assert done.returncode == 2
    assert "there is no GPU" in done.stderr


def test_steps_pass_fail_and_are_left_out_by_name(tmp_path):
    out = tmp_path / "results"
    steps = ("doctor", "verify", "in-tree", "lmms-eval")
    done = gpu_day("no/model", out, *steps, ANYWAY="1", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    rows = (out / "summary.md").read_text().splitlines()[2:]
    found = [row.split(" | ")[:2] for row in rows]
    assert found == [
        ["| doctor", "passed"],
        ["| verify", "failed with status 2, see verify.log"],
        ["| in-tree", "not run: TRUST_REMOTE_CODE=1 lets it run the checkpoint's code"],
        ["| lmms-eval", "not run: LMMS_EVAL names no environment with lmms-eval"],
    ]
    assert "no/model" in (out / "verify.log").read_text()
