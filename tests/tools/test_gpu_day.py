"""`tools/gpu_day.sh` takes under an hour, and says what failed and what did not run."""

import os
import subprocess
import sys
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
        timeout=600,
    )


def results(folder: Path) -> list[list[str]]:
    rows = (folder / "summary.md").read_text().splitlines()[2:]
    return [row.split(" | ")[:2] for row in rows]


@pytest.fixture
def program(tmp_path):
    """Makes a folder of programs that has one of a name, which runs shell code."""

    def make(name: str, code: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{code}\n")
        (folder / name).chmod(0o755)
        return str(folder)

    return make


def test_all_steps_take_under_an_hour():
    lines = gpu_day("--list").stdout.split()
    minutes = dict(line.split(":") for line in lines)
    assert {"remote-code", "tests", "verify", "lmms-eval"} <= minutes.keys()
    assert sum(map(int, minutes.values())) < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tiny, tmp_path):
    done = gpu_day(tiny, tmp_path / "results")
    assert done.returncode == 2
    assert "there is no GPU" in done.stderr


def test_steps_pass_fail_and_are_left_out_by_name(tmp_path):
    out = tmp_path / "results"
    steps = ("doctor", "remote-code", "verify", "in-tree", "lmms-eval")
    patient = {"MINUTE": "150"}  # other tests may need the processors
    done = gpu_day("no/model", out, *steps, ANYWAY="1", HF_HUB_OFFLINE="1", **patient)
    assert done.returncode == 1
    assert done.stderr == "verify: failed with status 2, see verify.log\n"
    assert done.stdout == ""
    no_consent = "not run: TRUST_REMOTE_CODE=1 lets it run the checkpoint's code"
    assert results(out) == [
        ["| doctor", "passed"],
        ["| remote-code", no_consent],
        ["| verify", "failed with status 2, see verify.log"],
        ["| in-tree", no_consent],
        ["| lmms-eval", "not run: LMMS_EVAL names no environment with lmms-eval"],
    ]
    assert "no/model" in (out / "verify.log").read_text()


def test_a_step_that_does_not_exist_and_a_folder_that_cannot_be_written_are_refused(
    tmp_path,
):
    done = gpu_day("no/model", tmp_path / "results", "verfy", ANYWAY="1")
    assert done.returncode == 2
    assert "there is no step verfy" in done.stderr
    (tmp_path / "file").touch()
    done = gpu_day("no/model", tmp_path / "file", "doctor", ANYWAY="1")
    assert done.returncode == 2
    assert "file" in done.stderr


def test_tests_that_are_all_skipped_did_not_run(tmp_path, program):
    skipped = "SKIPPED [2] tests/test_verify_on_gpu.py:19: needs a GPU"
    out = tmp_path / "results"
    done = gpu_day(
        "m", out, "tests", ANYWAY="1", BIN=program("python", f"echo {skipped!r}")
    )
    assert results(out) == [["| tests", f"not run: {skipped}"]]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = gpu_day(
        "m", out, "tests", ANYWAY="1", BIN=program("python", "echo 9 passed")
    )
    assert results(out) == [["| tests", "passed"]]


SERVER = """
import sys
from nemotron_vl.server import running
code = "echo $$ > " + sys.argv[1] + "; exec sleep 300"
with running(["sh", "-c", code], url="http://127.0.0.1:9", log=sys.argv[1] + ".log"):
    pass
"""


def test_a_step_that_takes_too_long_ends_with_the_server_that_it_started(
    tmp_path, program
):
    (tmp_path / "server.py").write_text(SERVER)
    code = f"exec {sys.executable} {tmp_path}/server.py {tmp_path}/pid"
    out, programs = tmp_path / "results", program("python", code)
    done = gpu_day("m", out, "serve", ANYWAY="1", BIN=programs, MINUTE="1")
    assert done.returncode == 1
    assert results(out) == [["| serve", "stopped after 5 minutes"]]
    assert done.stderr == "serve: stopped after 5 minutes\n"
    server = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_a_step_that_was_killed_failed(tmp_path, program):
    out, programs = tmp_path / "results", program("nemotron-vl", "kill -KILL $$")
    gpu_day("m", out, "doctor", ANYWAY="1", BIN=programs)
    assert results(out) == [["| doctor", "failed with status 137, see doctor.log"]]
