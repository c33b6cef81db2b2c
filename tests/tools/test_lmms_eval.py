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
from nemotron_vl.verify.documents import draw_documents, draw_numbers
from nemotron_vl.verify.reading import messages
from support.fake_server import fake_server

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
        for stored, image in zip(row["images"], question.images, strict=True):
            assert stored.convert("RGB").tobytes() == image.tobytes()


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
        harness.lmms_eval(tmp_path, "http://none", "m", "drawn_documents", out, None)


@pytest.mark.parametrize(
    ("system", "model"), [(None, "openai"), ("Be brief, please.", "async_openai")]
)
def test_a_system_message_needs_another_model(tmp_path, system, model):
    program = tmp_path / "lmms-eval"
    program.write_text('#!/bin/sh\nprintf "%s\n" "$@" > arguments\n')
    program.chmod(0o755)
    with pytest.raises(SystemExit):
        harness.lmms_eval(tmp_path, "http://none", "m", "a_task", tmp_path, system)
    given = (tmp_path / "arguments").read_text().splitlines()
    assert given[given.index("--model") + 1] == model
    settings = given[given.index("--model_args") + 1].split(",")
    files = [s.split("=")[1] for s in settings if s.startswith("system_prompt=")]
    texts = [(tmp_path / file).read_text() for file in files]
    assert texts == ([system] if system else [])


@installed
@pytest.mark.parametrize("system", [None, "Answer the questions, briefly."])
def test_it_counts_what_a_server_answers(tmp_path, system):
    questions = draw_documents(8)
    harness.write_data(questions, tmp_path / "drawn_documents.parquet")
    answers = {q.text: q.answer for q in questions[:5]}

    def answer(request: dict) -> str:
        return answers.get(request["messages"][-1]["content"][-1]["text"], "no")

    with fake_server() as server:
        server.answer = answer
        found = harness.lmms_eval(
            PROGRAMS, server.url, "fake", "drawn_documents", tmp_path, system
        )
    right = [answers.get(q.text, "no") == q.answer for q in questions]
    assert found == sum(right) / 8
    assert 0 < found < 1
    expected = messages(questions[0], system)[:-1]
    for request in server.requests:
        *before, _ = request["messages"]
        assert [(m["role"], text_of(m)) for m in before] == [
            (m["role"], text_of(m)) for m in expected
        ]


def text_of(message: dict) -> str:
    """The text of a message, which may be its content or the only part of it."""
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


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
        r"--tasks (\S+) ", (ROOT / "docs/verify.md").read_text().replace("\\\n", "")
    )
    tasks = PROGRAMS.parent.glob("lib/python*/site-packages/lmms_eval/tasks/*/*.yaml")
    known = "\n".join(file.read_text() for file in tasks)
    for name in names.split(","):
        assert re.search(rf'^task: "?{name}"?$', known, re.MULTILINE), name
