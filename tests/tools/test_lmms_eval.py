"""lmms-eval on drawn documents: its accuracy is ours, digit for digit.

lmms-eval has an environment of its own: the folder LMMS_EVAL, or build/lmms-eval/bin.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

import harness.run as harness
from support.fake_server import fake_server
from vllm_nemotron_vl.entrypoints.nemotron_vl.verify.documents import (
    draw_documents,
    draw_numbers,
)

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(os.environ.get("LMMS_EVAL", ROOT / "build/lmms-eval/bin"))

installed = pytest.mark.skipif(
    not (PROGRAMS / "lmms-eval").exists(),
    reason="lmms-eval is not installed, see requirements/lmms-eval.txt",
)


@pytest.mark.parametrize("draw", [draw_documents, draw_numbers])
def test_the_data_are_the_questions(draw, tmp_path):
    questions = draw(6)
    file = tmp_path / "data.parquet"
    harness.write_data(questions, file)
    cache = str(tmp_path / "cache")
    rows = load_dataset("parquet", data_files=str(file), cache_dir=cache)["train"]
    for row, question in zip(rows, questions, strict=True):
        assert (row["question"], row["answer"]) == question[2:]
        for image, picture in zip(row["images"], question.pictures, strict=True):
            assert image.convert("RGB").tobytes() == picture.tobytes()


def test_results_of_an_earlier_run_are_not_taken_for_those_of_a_failed_one(tmp_path):
    """After an error, the status of lmms-eval may be 0."""
    program = tmp_path / "lmms-eval"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    out = tmp_path / "out"
    (out / "lmms-eval").mkdir(parents=True)
    earlier = {"results": {"drawn_documents": {"exact_match,none": 1.0}}}
    (out / "lmms-eval" / "1_results.json").write_text(json.dumps(earlier))
    with pytest.raises(SystemExit, match="lmms-eval failed"):
        harness.lmms_eval(tmp_path, "http://none", "m", "drawn_documents", out)


@installed
def test_it_counts_what_a_server_answers(tmp_path):
    questions = draw_documents(8)
    harness.write_data(questions, tmp_path / "drawn_documents.parquet")
    answers = {q.text: q.answer for q in questions[:5]}

    def answer(request: dict) -> str:
        return answers.get(request["messages"][0]["content"][-1]["text"], "no")

    with fake_server() as server:
        server.answer = answer
        found = harness.lmms_eval(
            PROGRAMS, server.url, "fake", "drawn_documents", tmp_path
        )
    right = [answers.get(q.text, "no") == q.answer for q in questions]
    assert found == sum(right) / 8
    assert 0 < found < 1


@installed
@pytest.mark.releases
def test_its_accuracy_is_ours(tiny, tmp_path):
    command = [sys.executable, ROOT / "tools/harness/run.py", tiny, tmp_path]
    done = subprocess.run(
        [*command, "--programs", PROGRAMS, "--count", "40", "--dtype", "float32"],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = re.findall(r"^(?:lmms-eval|ours): +(\S+)$", done.stdout, re.MULTILINE)
    assert len(found) == 2 and found[0] == found[1]
    assert 0.5 < float(found[0]) < 1


@installed
def test_the_documented_tasks_exist():
    (names,) = re.findall(
        r"--tasks (\S+) ", (ROOT / "README.md").read_text().replace("\\\n", "")
    )
    tasks = PROGRAMS.parent.glob("lib/python*/site-packages/lmms_eval/tasks/*/*.yaml")
    known = "\n".join(file.read_text() for file in tasks)
    for name in names.split(","):
        assert re.search(rf'^task: "?{name}"?$', known, re.MULTILINE), name
