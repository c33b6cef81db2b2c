"""A correction changes the answer that it was made for, and no other."""

import json

import pytest

from nemotron_vl.documents.corrections import apply, read_corrections
from nemotron_vl.documents.results import read_records
from support.export_command import schema, write

TOTAL = schema(total={"type": "number"}) | {"required": ["total"]}


@pytest.fixture
def results(tmp_path):
    answer = {"total": 1, "other": "x"}
    good = {"file": "a", "page": 1, "answer": answer, "cut": "It was cut."}
    bad = {"file": "b", "page": 1, "error": "no JSON", "answer": "{"}
    return read_records(write(tmp_path / "r.jsonl", good, bad, schema=TOTAL))


def read(tmp_path, results, *corrections):
    file = tmp_path / "corrections.jsonl"
    file.write_text(
        "".join(json.dumps(c, ensure_ascii=False) + "\n" for c in corrections)
    )
    return read_corrections(file, results)


def of(record, **change):
    place = {"file": record.file, "page": record.page}
    return place | {"answer_sha256": record.digest} | change


def test_fields_and_whole_answers_are_replaced(tmp_path, results):
    good, bad = results.records
    fields, whole = of(good, fields={"total": 2}), of(bad, answer={"total": 3})
    corrections, refused = read(tmp_path, results, fields, whole)
    assert not refused
    apply(results, corrections)
    assert good.answer == {"total": 2, "other": "x"}
    assert bad.answer == {"total": 3}
    assert all(r.corrected and not r.error and not r.cut for r in results.records)


def test_an_end_of_line_within_a_text_is_kept(tmp_path):
    results = read_records(write(tmp_path / "r.jsonl", {"file": "a", "page": 1}))
    correction = of(results.records[0], answer="a\u2028b\u0085c")
    corrections, _ = read(tmp_path, results, correction)
    apply(results, corrections)
    assert results.records[0].answer == "a\u2028b\u0085c"


def test_a_correction_of_another_answer_is_refused_by_name(tmp_path, results):
    record = results.records[0]
    correction = of(record, fields={"total": 2})
    record.answer = {"total": 7}
    assert read(tmp_path, results, correction) == (
        {},
        ["a, page 1: the answer is another than the corrected one."],
    )


def test_a_correction_that_breaks_the_schema_is_refused_by_name(tmp_path, results):
    correction = of(results.records[0], fields={"total": "two"})
    found, (sentence,) = read(tmp_path, results, correction)
    assert not found
    assert sentence.startswith("a, page 1: the correction does not follow the schema")


def test_a_correction_of_no_record_is_refused_by_name(tmp_path, results):
    correction = of(results.records[0], fields={}) | {"page": 2}
    _, (sentence,) = read(tmp_path, results, correction)
    assert sentence == "a, page 2: there is no record that could be corrected."


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"file": "a", "page": 1}',
        '{"file": "a", "page": 1, "fields": []}',
        '{"file": "a", "page": [], "answer": 1}',
        '{"file": "a", "page": 1, "fields": {}, "answer": 1}',
    ],
)
def test_what_is_no_correction_is_named(tmp_path, results, line):
    file = tmp_path / "c.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match="c.jsonl, line 1 is no correction"):
        read_corrections(file, results)
