"""Tables have a row for each page or document, and values as the schema types them."""

import csv
import json

import pyarrow
import pytest
from pyarrow import parquet

from support.export_command import export, schema, write

SCHEMA = schema(
    text={"type": ["string", "null"]},
    number={"anyOf": [{"$ref": "#/$defs/amount"}, {"type": "null"}]},
    whole={"type": "integer"},
    flag={"type": "boolean"},
    choice={"enum": ["a", "b", None]},
    items={"type": "array"},
    page={"type": "string"},
) | {"$defs": {"amount": {"type": "number"}}}
DATA = {
    "text": "x",
    "number": 2,
    "whole": 3,
    "flag": True,
    "choice": "a",
    "items": [{"n": 1}],
    "page": "of a book",
}


def read_csv(file):
    with file.open(encoding="utf-8-sig", newline="") as opened:
        return [*csv.DictReader(opened)]


def record(page, answer=None, **others):
    return {"file": "d/a.pdf", "page": page, "answer": answer, **others}


@pytest.fixture
def records(tmp_path):
    return write(
        tmp_path / "r.jsonl",
        record(1, DATA, text_layer={"cer": 0.25, "characters": 8}),
        record(2, "{", error="no JSON", cut="It was cut."),
        record(3, "", blank=True),
        schema=SCHEMA,
    )


def test_parquet_has_the_types_of_the_schema(tmp_path, records):
    out = tmp_path / "t.parquet"
    assert export(records, "parquet", out) == 0
    table = parquet.read_table(out)
    types = {
        "document": "string",
        "page": "int64",
        "text": "string",
        "number": "double",
        "whole": "int64",
        "flag": "bool",
        "choice": "string",
        "items": "string",
        "answer.page": "string",
        "cer": "double",
        "blank": "bool",
    }
    assert {name: str(table.schema.field(name).type) for name in types} == types
    first, second, third = table.to_pylist()
    assert first["items"] == '[{"n": 1}]' and first["answer.page"] == "of a book"
    assert first["number"] == 2.0 and first["answer"] is None
    assert second["text"] is None and second["answer"] == "{"
    assert (second["error"], second["cut"]) == ("no JSON", "It was cut.")
    assert third["blank"] is True and first["cer"] == 0.25


def test_a_value_that_does_not_fit_makes_its_column_json(tmp_path):
    out = tmp_path / "t.parquet"
    answers = [{"whole": 1, "text": "\ud800"}, {"whole": 1 << 70, "text": None}]
    pages = [record(page, answer) for page, answer in enumerate(answers, 1)]
    assert (
        export(write(tmp_path / "r.jsonl", *pages, schema=SCHEMA), "parquet", out) == 0
    )
    table = parquet.read_table(out)
    assert table["whole"].to_pylist() == ["1", str(1 << 70)]
    assert table["text"].to_pylist() == ["\\ud800", None]


@pytest.mark.parametrize(
    ("number", "fits"),
    [(2**63 - 1, True), (2**63, False), (-(2**63), True), (-(2**63) - 1, False)],
)
def test_whole_numbers_have_64_bits_or_are_json(tmp_path, number, fits):
    out, records = tmp_path / "t.parquet", tmp_path / "r.jsonl"
    schema = {"type": "object", "properties": {"count": {"type": "integer"}}}
    page = {"file": "a.pdf", "page": 1, "answer": {"count": number}}
    assert export(write(records, page, schema=schema), "parquet", out) == 0
    (found,) = parquet.read_table(out)["count"].to_pylist()
    assert found == (number if fits else str(number))


def test_a_row_of_a_document_lists_its_pages(tmp_path, records):
    out = tmp_path / "t.parquet"
    assert export(records, "parquet", out, "--per", "document") == 0
    table = parquet.read_table(out)
    assert table.schema.field("pages").type == pyarrow.list_(pyarrow.int64())
    (row,) = table.to_pylist()
    assert row["pages"] == [1, 2, 3] and row["error"] == "Page 2: no JSON"
    assert row["text"] == "x"


def test_jsonl_holds_nested_values(tmp_path, records):
    out = tmp_path / "t.jsonl"
    assert export(records, "jsonl", out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["items"] == [{"n": 1}]
    assert [row["page"] for row in rows] == [1, 2, 3]
    assert {*rows[0]} == {*rows[1]}


def test_csv_is_for_spreadsheets(tmp_path, records):
    out = tmp_path / "t.csv"
    assert export(records, "csv", out, "--per", "document") == 0
    assert out.read_bytes().startswith(b"\xef\xbb\xbf")  # Excel reads it as UTF-8
    (row,) = read_csv(out)
    assert (row["pages"], row["number"], row["flag"]) == ("1 2 3", "2", "true")


def test_a_list_of_numbers_is_json_as_other_lists_are(tmp_path):
    out = tmp_path / "t.csv"
    pages = [record(1, {"items": [1, 2]}), record(2, {"items": []})]
    assert export(write(tmp_path / "r.jsonl", *pages, schema=SCHEMA), "csv", out) == 0
    assert [row["items"] for row in read_csv(out)] == ["[1, 2]", "[]"]


@pytest.mark.parametrize("text", ["=1+1", "@A1", "+HYPERLINK(1)", "-a", "\t=1", "\r=1"])
def test_csv_holds_no_formulas_of_documents(tmp_path, text):
    out = tmp_path / "t.csv"
    assert export(write(tmp_path / "r.jsonl", record(1, text)), "csv", out) == 0
    assert read_csv(out)[0]["answer"] == "'" + text
    fields = write(tmp_path / "f.jsonl", record(1, {"text": text}), schema=SCHEMA)
    assert export(fields, "csv", out) == 0
    assert read_csv(out)[0]["text"] == "'" + text


@pytest.mark.parametrize("text", ["-12.50", "+49 30 1234-5", "a=b", "(1)", "'x", "-"])
def test_csv_leaves_signed_numbers_and_other_texts_as_they_are(tmp_path, text):
    out = tmp_path / "t.csv"
    assert export(write(tmp_path / "r.jsonl", record(1, text)), "csv", out) == 0
    assert read_csv(out)[0]["answer"] == text


def test_csv_keeps_lines_quotes_and_names_that_are_not_utf_8(tmp_path):
    out = tmp_path / "t.csv"
    page = record(1, 'a "b",\r\nc') | {"file": "caf\u00e9\udcff.pdf"}
    assert export(write(tmp_path / "r.jsonl", page), "csv", out) == 0
    (row,) = read_csv(out)
    assert row["answer"] == 'a "b",\r\nc'
    assert row["document"] == "caf\u00e9\\udcff.pdf"


def test_without_a_schema_the_answers_say_which_columns_there_are(tmp_path):
    out = tmp_path / "t.csv"
    pages = [record(1, {"a": 1}), record(2, {"b": "x"}), record(3, "text")]
    assert export(write(tmp_path / "r.jsonl", *pages), "csv", out) == 0
    rows = read_csv(out)
    assert [(r["a"], r["b"], r["answer"]) for r in rows] == [
        ("1", "", ""),
        ("", "x", ""),
        ("", "", "text"),
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_an_earlier_export_is_replaced_and_another_file_is_not(
    tmp_path, records, kind, capsys
):
    out = tmp_path / f"t.{kind}"
    assert export(records, kind, out) == 0
    assert export(records, kind, out, "--per", "document") == 0
    kept = records.read_bytes()
    assert export(records, kind, records) == 2
    assert "r.jsonl is no earlier export" in capsys.readouterr().err
    assert records.read_bytes() == kept
