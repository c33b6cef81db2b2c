"""`examples/ray_data.py` on a local Ray with engines on CPUs, one of them killed.

Ray has an environment of its own: `make test-releases RELEASES=RAY`.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest

from nemotron_vl import documents
from nemotron_vl.images.drawn import draw_text
from nemotron_vl.main import main
from support.documents import encrypted_pdf, pdf

pytest.importorskip("ray.data", reason="Ray is not installed")
pytestmark = pytest.mark.releases

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"
DOCUMENTS, PAGES = 50, 10
ENGINE = "ray::MapWorker(MapBatches(vLLMEngineStageUDF))"
OPTIONS = ["--cpus", "0.5", "--batch-size", "4", "--max-tiles", "3"]
SCHEMA = {
    "type": "object",
    "properties": {"text": {"enum": ["640-27", "317-45"]}},
    "required": ["text"],
    "additionalProperties": False,
}


def text(document: int, page: int) -> str:
    return f"{(document * PAGES + page) * 1237 % 1000:03d}-{page:02d}"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    return folder


@pytest.fixture
def start(folder, tmp_path):
    """Starts the example on the folder; its output goes to a file."""
    log = tmp_path / "log.txt"
    started = []

    def start(*options: str) -> subprocess.Popen:
        # As on other machines: the folder of answers is a URL.
        out = (tmp_path / "answers").as_uri()
        command = [sys.executable, EXAMPLE, folder, out, *OPTIONS, *options]
        env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def engines(process: subprocess.Popen) -> list[psutil.Process]:
    """The workers of Ray below the process that have an engine."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith(ENGINE):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def records(folder: Path) -> list[dict]:
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


def wait(process: subprocess.Popen, log: Path) -> None:
    assert process.wait(400) == 0, log.read_text()[-3000:]


def test_a_killed_engine_loses_no_page(folder, start, tmp_path):
    for document in range(DOCUMENTS):
        drawn = [draw_text(text(document, page)) for page in range(PAGES)]
        (folder / f"{document}.pdf").write_bytes(pdf(drawn))
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    draw_text("12").save(folder / "torn.png")
    torn = (folder / "torn.png").read_bytes()
    (folder / "torn.png").write_bytes(torn[: len(torn) // 2])
    out, log = tmp_path / "answers", tmp_path / "log.txt"
    question = ("--question", "Read the text.")
    process = start("--engines", "2", "--root", str(folder), *question)
    deadline = time.monotonic() + 400
    # Both engines have started, and one has answered.
    while not any(out.glob("*")) or len(victims := engines(process)) < 2:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    assert len([*out.iterdir()]) * 4 < DOCUMENTS * PAGES  # files of 4 records
    victims[0].send_signal(signal.SIGKILL)
    wait(process, log)
    assert "A worker died or was killed while executing a task" in log.read_text()

    assert len([*out.iterdir()]) > 1  # both engines' answers
    assert len(records(out)) == DOCUMENTS * PAGES + 2
    found = {(record["file"], record["page"]): record for record in records(out)}
    locked, torn = found.pop(("locked.pdf", None)), found.pop(("torn.png", 1))
    assert "password" in locked["error"] and "truncated" in torn["error"]
    assert "answer" not in torn and torn["source"]["bytes"] > 0
    assert len(found) == DOCUMENTS * PAGES
    for (file, page), record in found.items():
        document = folder / file
        assert record["answer"] == text(int(document.stem), page - 1)
        assert record["finish_reason"] == "stop" and "error" not in record
        assert record["tokens"]["prompt"] > record["tokens"]["answer"] > 0
        status = document.stat()
        state = {"bytes": status.st_size, "modified": status.st_mtime}
        assert record["source"] | state == record["source"]

    assert len(documents.read_records(out).records) == DOCUMENTS * PAGES + 2
    table = tmp_path / "answers.csv"
    assert main(["export", str(out), "--to", "csv", "--out", str(table)]) == 0
    with table.open(newline="", encoding="utf-8-sig") as rows:
        answers = [row["answer"] for row in csv.DictReader(rows) if row["answer"]]
    assert sorted(answers) == sorted(record["answer"] for record in found.values())


def test_data_of_a_schema(folder, start, tmp_path):
    (folder / "a.pdf").write_bytes(pdf([draw_text("640-27"), draw_text("317-45")]))
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    wait(start("--schema", str(schema)), tmp_path / "log.txt")
    found = records(tmp_path / "answers")
    assert [record["page"] for record in found] == [1, 2]
    for record in found:
        jsonschema.validate(record["answer"], SCHEMA)
        assert record["finish_reason"] == "stop" and "error" not in record


def test_a_cut_answer_says_so(folder, start, tmp_path):
    draw_text("640-27").save(folder / "a.png")
    question = ("--question", "Read the text.", "--max-tokens", "3")
    wait(start(*question), tmp_path / "log.txt")
    (record,) = records(tmp_path / "answers")
    assert record["finish_reason"] == "length"
    assert record["cut"] == "It was cut after 3 tokens."
    assert "640-27".startswith(record["answer"])
