"""The Python API: its names, and what docs/documents.md shows of it."""

import json
import re
from pathlib import Path

import pytest

from nemotron_vl import documents
from support.documents import encrypted_pdf, pdf, solid
from support.fake_server import fake_server

PAGE = Path(__file__).parents[3] / "docs" / "documents.md"
(SECTION,) = re.findall(r"^## From Python\n(.*?)^## ", PAGE.read_text(), re.M | re.S)
NOTEBOOK, DRAW = re.findall(r"```python\n(.*?)```", SECTION, re.S)


def test_each_name_is_there_and_documented():
    for name in documents.__all__:
        assert getattr(documents, name).__doc__
    assert {*re.findall(r"`(\w+)`", SECTION)} >= {*documents.__all__}


def test_the_notebook_asks_and_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "invoices"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf([solid("red"), solid("blue")]))
    (folder / "copy.pdf").write_bytes((folder / "a.pdf").read_bytes())
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    monkeypatch.chdir(tmp_path)
    with fake_server() as server:
        code = NOTEBOOK.replace("http://127.0.0.1:8000", server.url)
        assert server.url in code
        for _ in range(2):
            exec(code, {})
    assert len(server.requests) == 2
    found = documents.read_records(tmp_path / "answers.jsonl").records
    places = [(Path(record.file).name, record.page) for record in found]
    assert places == [
        *(("a.pdf", 1), ("a.pdf", 2), ("copy.pdf", 1), ("copy.pdf", 2)),
        ("locked.pdf", None),
    ]
    assert [record.answer for record in found[:4]] == ["1536x2048"] * 4
    assert all(record.source["bytes"] for record in found)


def test_a_job_draws_and_knows_the_sources(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([solid("red"), solid("blue")]))
    (tmp_path / "locked.pdf").write_bytes(encrypted_pdf())
    drawing = documents.Drawing(documents.Tiler.from_model(None))
    names = {"documents": documents, "options": documents.Options(drawing)}
    exec(DRAW, names)
    found = documents.find_documents([tmp_path], str(tmp_path)).documents
    row = json.loads(json.dumps({"documents": [d._asdict() for d in found]}))
    rows = list(names["draw"](row))
    assert [(r["file"], r["page"]) for r in rows] == [
        *(("a.pdf", 1), ("a.pdf", 2)),
        ("locked.pdf", None),
    ]
    assert rows[0]["image"] != rows[1]["image"]
    assert "password" in rows[2]["error"]
    for row in rows:
        assert row["source"]["bytes"] == (tmp_path / row["file"]).stat().st_size


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        documents.nothing  # noqa: B018
