"""`nemotron-vl export`: Markdown, corrections, and what is refused."""

import json
import subprocess
import sys

import fsspec
import pytest

from nemotron_vl.commands import export as command
from nemotron_vl.documents.results import read_records
from nemotron_vl.main import main
from support.export_command import export, schema, write


def page(file, number, answer=None, **others):
    return {"file": file, "page": number, "answer": answer, **others}


def test_markdown_has_a_file_for_each_document_in_its_folder(tmp_path):
    records = write(
        tmp_path / "r.jsonl",
        page("/mail/in/b.pdf", 2, "second"),
        page("/mail/in/b.pdf", 1, "first", cut="It was cut."),
        page("/mail/out/a.png", 1, error="broken <img>\n# no title"),
    )
    out = tmp_path / "out"
    assert export(records, "md", out) == 0
    assert (out / "in" / "b.pdf.md").read_text() == (
        "# b.pdf\n\n<!-- page 1 -->\n\n> **Cut:** It was cut.\n\nfirst\n\n"
        "<!-- page 2 -->\n\nsecond\n"
    )
    assert (out / "out" / "a.png.md").read_text() == (
        "# a.png\n\n<!-- page 1 -->\n\n> **Error:** broken <img>\n> # no title\n"
    )


def test_markdown_shows_data_as_tables_and_lists(tmp_path):
    answer = {
        "total": 1.5,
        "note": "a|b\n<b>",
        "items": [{"n": 1, "t": "x"}, {"n": 2}],
        "tags": ["u", "v"],
        "deep": {"k": [1]},
    }
    out = tmp_path / "out"
    assert export(write(tmp_path / "r.jsonl", page("a", 1, answer)), "md", out) == 0
    text = (out / "a.md").read_text()
    assert "| total | 1.5 |\n| note | a\\|b<br>\\<b> |" in text
    assert "**items**\n\n| n | t |\n| --- | --- |\n| 1 | x |\n| 2 |  |" in text
    assert "**tags**\n\n- u\n- v" in text
    assert '**deep**\n\n```json\n{\n "k"' in text


def test_markdown_of_a_document_is_one_part(tmp_path):
    pages = [page("a", number, {"x": number}) for number in (1, 2)]
    records = write(tmp_path / "r.jsonl", *pages, schema=schema(x={"type": "integer"}))
    out = tmp_path / "out"
    assert export(records, "md", out, "--per", "document") == 0
    text = (out / "a.md").read_text()
    assert (
        "<!-- pages 1, 2 -->\n\n> **Pages differ:** x: 1 (page 1), 2 (page 2)" in text
    )
    assert text.count("| x |") == 1


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a\0b", "n" * 5000, "..", ""]
)
def test_a_hostile_name_stays_below_the_folder(tmp_path, name):
    records = write(tmp_path / "r.jsonl", page(name, 1, "t"), page("other", 1, "t"))
    out = tmp_path / "deep" / "deeper" / "out"
    assert export(records, "md", out) == 0
    made = [f for f in tmp_path.rglob("*.md") if f.is_file()]
    assert len(made) == 2
    assert all(file.is_relative_to(out) for file in made)


def test_corrections_are_applied_and_refused_ones_are_named(tmp_path, capsys):
    records = write(tmp_path / "r.jsonl", page("a", 1, "teh"), page("b", 1, "x"))
    digest = read_records(records).records[0].digest
    correction = {"file": "a", "page": 1, "answer_sha256": digest, "answer": "the"}
    file, out = tmp_path / "c.jsonl", tmp_path / "t.jsonl"
    file.write_text(json.dumps(correction) + "\n")
    assert export(records, "jsonl", out, "--corrections", str(file)) == 0
    assert "2 records of 2 documents, 1 corrected." in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["answer"], r["corrected"]) for r in rows] == [
        ("the", True),
        ("x", False),
    ]

    file.write_text(json.dumps(correction | {"answer_sha256": "0"}) + "\n")
    assert export(records, "jsonl", out, "--corrections", str(file)) == 1
    assert "a, page 1: the answer is another" in capsys.readouterr().err
    assert json.loads(out.read_text().splitlines()[0])["answer"] == "teh"


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    missing = tmp_path / "missing.jsonl"
    assert export(missing, "csv", tmp_path / "t.csv") == 2
    assert "missing.jsonl" in capsys.readouterr().err
    data = write(tmp_path / "r.jsonl", page("a", 1, {"x": 1}))
    assert export(data, "csv", tmp_path / "t.csv", "--per", "document") == 2
    assert "the records have no schema" in capsys.readouterr().err
    assert export(data, "html", tmp_path / "out", "--per", "document") == 2
    assert "leave out --per document" in capsys.readouterr().err
    assert export(data, "md", tmp_path) == 2
    assert "is not empty, and no earlier export" in capsys.readouterr().err
    assert {*tmp_path.iterdir()} == {data}


@pytest.mark.parametrize(
    ("kind", "package"),
    [("parquet", "pyarrow"), ("html", "pypdfium2"), ("md", "jsonschema")],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, capsys, kind, package):
    records = write(tmp_path / "r.jsonl", page("a", 1, "x"))
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert export(records, kind, tmp_path / "out", "--corrections", "c.jsonl") == 2
    error = capsys.readouterr().err
    assert "pip install" in error and package in error
    assert not (tmp_path / "out").exists()


def test_it_runs_without_packages_for_reading_and_for_engines(tmp_path):
    """Markdown, CSV and JSON lines need no extra of this package."""
    records = write(tmp_path / "r.jsonl", page("a", 1, {"x": 1}), schema=schema(x={}))
    code = (
        "import sys; sys.modules |= dict.fromkeys(['jsonschema', 'openai', 'pyarrow',"
        "'pydantic', 'pypdfium2', 'torch', 'transformers', 'vllm']);"
        "from nemotron_vl.main import main; sys.exit(main(sys.argv[1:]))"
    )
    for kind in ("csv", "jsonl", "md"):
        out = str(tmp_path / f"out.{kind}")
        arguments = ["export", str(records), "--to", kind, "--out", out]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_records_of_another_file_system(tmp_path):
    system = fsspec.filesystem("memory")
    file = write(tmp_path / "r.jsonl", page("a", 1, "first"))
    system.pipe("/r.jsonl", file.read_bytes())
    out = tmp_path / "out.csv"
    assert main(["export", "memory://r.jsonl", "--to", "csv", "--out", str(out)]) == 0
    assert "a,1,first" in out.read_text()
