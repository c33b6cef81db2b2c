"""`examples/ray_data.py` on a local Ray with two engines on CPUs, one of them killed.

Ray is not among the locked versions of the tests: `pip install "ray[data]"` first.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemotron_vl.images.drawn import draw_text
from support.documents import encrypted_pdf, pdf

pytest.importorskip("ray.data", reason="Ray is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"
DOCUMENTS, PAGES = 50, 10
ENGINE = "ray::MapWorker(MapBatches(vLLMEngineStageUDF))"
OPTIONS = ["--engines", "2", "--cpus", "0.5", "--batch-size", "4", "--max-tiles", "3"]


def text(document: int, page: int) -> str:
    return f"{(document * PAGES + page) * 1237 % 1000:03d}-{page:02d}"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for document in range(DOCUMENTS):
        drawn = [draw_text(text(document, page)) for page in range(PAGES)]
        (folder / f"{document}.pdf").write_bytes(pdf(drawn))
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    return folder


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
    files = sorted(folder.glob("*.json"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


def test_a_killed_engine_loses_no_page(folder, tmp_path):
    out, log = tmp_path / "answers", tmp_path / "log.txt"
    command = [sys.executable, EXAMPLE, folder, out, *OPTIONS]
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
    try:
        deadline = time.monotonic() + 300
        while not records(out) and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        victims = engines(process)
        assert len(victims) == 2 and len(records(out)) < DOCUMENTS * PAGES
        victims[0].send_signal(signal.SIGKILL)
        assert process.wait(300) == 0, log.read_text()[-3000:]
    finally:
        process.terminate()
        process.wait(60)
    assert "A worker died or was killed while executing a task" in log.read_text()
    found = {
        (Path(record["file"]).stem, record["page"]): record["answer"]
        for record in records(out)
    }
    assert len(records(out)) == len(found) == DOCUMENTS * PAGES
    for (document, page), answer in found.items():
        assert answer == text(int(document), page - 1)
    (broken,) = records(out / "errors")
    assert broken["file"].endswith("locked.pdf") and "password" in broken["error"]
