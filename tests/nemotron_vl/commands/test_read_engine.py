"""`nemotron-vl read` and `vllm run-batch` answer with the embedded checkpoint."""

import json
from pathlib import Path

import jsonschema
import pytest

from nemotron_vl.documents.tasks import read_task
from nemotron_vl.images.drawn import draw_text
from nemotron_vl.main import main
from nemotron_vl.server import serving
from support.documents import pdf, tiff
from support.forked import run_forked
from support.read_command import records
from support.servers import forked_servers, run_vllm

# The checkpoint reads them on three tiles; larger letters than its tiles it does not.
TEXTS = {
    "a.pdf#1": "$12.50",
    "a.pdf#2": "640-27",
    "b.tif#1": "317-45",
    "c.png#1": "$98.04",
}
THREE_TILES = ["--max-tiles", "3"]
OPTIONS = ["--dtype=float32", "--enforce-eager", "--max-num-seqs=4"]
SCHEMA = {
    "type": "object",
    "properties": {"text": {"enum": [*TEXTS.values()]}},
    "required": ["text"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    first, second, third, fourth = map(draw_text, TEXTS.values())
    (folder / "a.pdf").write_bytes(pdf([first, second]))
    (folder / "b.tif").write_bytes(tiff([third]))
    fourth.save(folder / "c.png")
    return folder


def test_a_model_is_served_and_reads_the_pages(folder, tiny, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    arguments = [str(folder), "--question", "Read the text.", "--out", str(out)]
    arguments += ["--model", str(tiny), *THREE_TILES]
    arguments += [f"--serve-options={' '.join(OPTIONS)}"]
    assert main(["read", *arguments]) == 0, capsys.readouterr().err
    found = records(out)
    answers = {f"{Path(r['file']).name}#{r['page']}": r["answer"] for r in found}
    assert answers == TEXTS
    assert all(r["tokens"]["prompt"] > r["tokens"]["answer"] > 0 for r in found)
    # Nothing is left to do, so no server starts.
    assert main(["read", *arguments]) == 0
    assert "records: 4, new: 0, errors: 0" in capsys.readouterr().out


def test_run_batch_takes_the_requests(folder, tiny, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    batch, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    requests = ""
    for asked in (["--question", "Read the text."], ["--schema", str(schema)]):
        options = [*asked, "--model", str(tiny), *THREE_TILES, "--batch", str(batch)]
        assert main(["read", str(folder), *options]) == 0
        requests += batch.read_text()
    batch.write_text(requests)
    command = ["vllm", "run-batch", "-i", batch, "-o", results, "--model", tiny]
    command += [*OPTIONS, "--max-model-len=4096"]
    command += ['--mm-processor-kwargs={"max_dynamic_patch": 3}']
    run_forked(run_vllm, [*map(str, command)], output=tmp_path / "log.txt")
    texts, data = {}, []
    for line in results.read_text().splitlines():
        result = json.loads(line)
        assert result["error"] is None, result
        answer = result["response"]["body"]["choices"][0]["message"]["content"]
        if answer.startswith("{"):
            data.append(json.loads(answer))
        else:
            texts[result["custom_id"].rpartition("/")[2]] = answer
    assert texts == TEXTS
    assert len(data) == len(TEXTS)
    for answer in data:
        jsonschema.validate(answer, SCHEMA)


@pytest.fixture(scope="module")
def url(tiny, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    settings = [
        '--mm-processor-kwargs={"max_dynamic_patch": 3}',
        "--max-model-len=4096",
    ]
    settings.append('--limit-mm-per-prompt={"image": 4}')
    with forked_servers(), serving(tiny, *OPTIONS, *settings, log=log) as url:
        yield url


def read(folder, url, out, *options: str) -> dict[tuple[str, int], dict]:
    """Records by file and page."""
    command = ["read", str(folder), "--url", url, "--out", str(out), *THREE_TILES]
    assert main([*command, *options]) in (0, 1)
    return {(Path(r["file"]).name, r["page"]): r for r in records(out)}


@pytest.mark.parametrize("task", ["text", "markdown", "table", "fields"])
def test_ready_tasks_are_answered(folder, url, tmp_path, task):
    """The checkpoint was trained for the first question only."""
    out = tmp_path / "answers.jsonl"
    found = read(folder, url, out, "--task", task, "--max-tokens", "64")
    assert len(found) == len(TEXTS)
    for (name, page), record in found.items():
        if task == "text":
            assert record["answer"] == TEXTS[f"{name}#{page}"]
        elif task != "fields":
            assert record["answer"] or record["finish_reason"] == "stop"
        elif "error" in record:
            assert record["cut"] in record["error"]
            assert "\n\n" not in record["answer"]  # not filled with blanks
        else:
            jsonschema.validate(record["answer"], read_task("fields").schema)


def test_data_is_not_filled_with_blanks(folder, url, tmp_path):
    """Without the structural tag, this checkpoint writes line feeds to the limit."""
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    options = ("--question", "Read the text.", "--schema", str(schema))
    found = read(folder, url, tmp_path / "answers.jsonl", *options)
    assert len(found) == len(TEXTS)
    for record in found.values():
        jsonschema.validate(record["answer"], SCHEMA)


def test_a_document_is_one_request(folder, url, tmp_path):
    options = ("--question", "Read both.", "--per", "document", "--max-tokens", "64")
    found = read(folder, url, tmp_path / "answers.jsonl", *options)
    record = found["a.pdf", 1]
    assert record["pages"] == [1, 2]
    assert record["answer"] == f"{TEXTS['a.pdf#1']}\n{TEXTS['a.pdf#2']}"
