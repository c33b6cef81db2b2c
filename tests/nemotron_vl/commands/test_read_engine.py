"""`nemotron-vl read` and `vllm run-batch` answer with the embedded checkpoint."""

import json
from pathlib import Path

import jsonschema
import pytest

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.main import main
from support.documents import pdf, tiff
from support.forked import run_forked
from support.servers import run_vllm

# The checkpoint reads them on three tiles; larger letters than its tiles it does not.
TEXTS = {
    "a.pdf#1": "$12.50",
    "a.pdf#2": "640-27",
    "b.tif#1": "317-45",
    "c.png#1": "$98.04",
}
THREE_TILES = ["--max-tiles", "3"]
OPTIONS = ["--dtype=float32", "--enforce-eager", "--max-num-seqs=4"]
NO_SPACES = (
    "--structured-outputs-config="
    '{"backend": "xgrammar", "disable_any_whitespace": true}'
)
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
    found = [json.loads(line) for line in out.read_text().splitlines()]
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
    command += [*OPTIONS, NO_SPACES, "--max-model-len=4096"]
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
