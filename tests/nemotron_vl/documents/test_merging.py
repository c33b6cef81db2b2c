"""The answers about the pages of a document become one, by rules in the schema."""

import json

import pytest
import xgrammar
from xgrammar.testing import _is_grammar_accept_string as accepts

from nemotron_vl.documents.merging import RULES, merge_documents
from nemotron_vl.documents.results import read_records
from support.export_command import schema, write


def merge(tmp_path, answers, properties=None, **settings):
    """The record of a document whose pages have these answers, or these errors."""
    records = [
        {"file": "a.pdf", "page": page}
        | (answer if "error" in answer else {"answer": answer})
        for page, answer in enumerate(answers, 1)
    ]
    if properties is not None:
        settings["schema"] = schema(**properties)
    results = read_records(write(tmp_path / "r.jsonl", *records, **settings))
    (merged,) = merge_documents(results)
    return merged


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        ("first", [None, 2, 3], 2),
        ("last", [1, 2, None], 2),
        ("sum", [0.1, None, 0.2], 0.3),
        ("sum", [1, 2], 3),
        ("sum", [None], None),
        ("list", ["a", None, "b"], ["a", "b"]),
        ("list", [["a", "b"], [], ["c"]], ["a", "b", "c"]),
        ("list", ["a"], ["a"]),
        ("list", [None], []),
        ("agree", [1, 2, 2], 2),
        ("agree", [1, 2], 1),
        ("agree", [None, None], None),
        ("agree", [{"b": 1, "a": 2}, {"a": 2, "b": 1}], {"a": 2, "b": 1}),
    ],
)
def test_rules(tmp_path, rule, values, expected):
    answers = [{"x": value} for value in values]
    merged = merge(tmp_path, answers, {"x": {"x-merge": rule}})
    assert merged.answer == {"x": expected}
    assert type(merged.answer["x"]) is type(expected)
    assert merged.pages == [*range(1, len(values) + 1)]


def test_conflicts_are_listed_with_their_pages(tmp_path):
    answers = [{"x": "A", "y": 1}, {"x": "B", "y": 1}, {"x": "A", "y": None}]
    merged = merge(tmp_path, answers, {"x": {}, "y": {}})
    assert merged.answer == {"x": "A", "y": 1}
    assert merged.conflicts == "x: A (pages 1, 3), B (page 2)"


def test_the_order_of_keys_is_no_conflict(tmp_path):
    answers = [{"x": {"b": 1, "a": 2}}, {"x": {"a": 2, "b": 1}}]
    assert not merge(tmp_path, answers, {"x": {}}).conflicts


def test_true_and_one_are_not_the_same(tmp_path):
    merged = merge(tmp_path, [{"x": 1}, {"x": True}], {"x": {}})
    assert merged.conflicts == "x: 1 (page 1), true (page 2)"


def test_records_with_errors_do_not_take_part_and_are_listed(tmp_path):
    answers = [{"x": 1}, {"error": "broken", "answer": "{"}, {"x": 2}]
    merged = merge(tmp_path, answers, {"x": {"x-merge": "sum"}})
    assert (merged.answer, merged.error) == ({"x": 3}, "Page 2: broken")
    assert merged.pages == [1, 2, 3]


def test_texts_are_joined(tmp_path):
    assert merge(tmp_path, [{"error": "x"}]).answer is None
    records = [{"file": "a", "page": p, "answer": t} for p, t in ((2, "b"), (1, "a"))]
    results = read_records(write(tmp_path / "r.jsonl", *records))
    assert [record.answer for record in merge_documents(results)] == ["a\n\nb"]


def test_error_rates_count_by_the_length_of_the_text(tmp_path):
    records = [
        {"file": "a", "page": page, "answer": "x", "text_layer": layer}
        for page, layer in (
            (1, {"cer": 0.5, "characters": 100}),
            (2, {"cer": 0.0, "characters": 300}),
        )
    ]
    results = read_records(write(tmp_path / "r.jsonl", *records))
    (merged,) = merge_documents(results)
    assert (merged.cer, merged.characters) == (0.125, 400)


def test_an_error_rate_without_a_length_has_no_weight(tmp_path):
    layers = {"cer": 0.5}, {"cer": 0.25, "characters": 3}
    records = [
        {"file": "a", "page": page, "answer": "x", "text_layer": layer}
        for page, layer in enumerate(layers, 1)
    ]
    results = read_records(write(tmp_path / "r.jsonl", *records))
    (merged,) = merge_documents(results)
    assert (merged.cer, merged.characters) == (0.25, 3)


def test_an_answer_about_no_page_is_not_one_of_the_first_page(tmp_path):
    records = [
        {"file": "a", "page": page, "answer": {"x": value}}
        for page, value in ((1, "A"), (None, "B"))
    ]
    settings = {"schema": schema(x={})}
    results = read_records(write(tmp_path / "r.jsonl", *records, **settings))
    (merged,) = merge_documents(results)
    assert merged.answer == {"x": "A"}
    first, second = merged.conflicts.split(", ")
    assert first == "x: A (page 1)" and second.startswith("B (")


def test_an_answer_about_all_pages_stays_as_it_is(tmp_path):
    record = {"file": "a", "page": 1, "pages": [1, 2, 3], "answer": {"x": "one"}}
    settings = {"per": "document", "schema": schema(x={"x-merge": "list"})}
    results = read_records(write(tmp_path / "r.jsonl", record, **settings))
    (merged,) = merge_documents(results)
    assert (merged.answer, merged.pages) == ({"x": "one"}, [1, 2, 3])


@pytest.mark.parametrize(
    ("answers", "properties", "cause"),
    [
        ([{"x": 1}], {"x": {"x-merge": "max"}}, "x-merge of 'x' is 'max'. Choose one"),
        ([{"x": "1"}], {"x": {"x-merge": "sum"}}, "a.pdf, page 1: 'x' is \"1\""),
        ([{"x": True}], {"x": {"x-merge": "sum"}}, "'x' is true"),
        ([{"x": 1}], None, "the records have no schema"),
    ],
)
def test_what_cannot_be_merged_is_refused(tmp_path, answers, properties, cause):
    with pytest.raises(ValueError, match=cause):
        merge(tmp_path, answers, properties)


@pytest.mark.parametrize("rule", [None, *RULES])
def test_the_keyword_changes_no_grammar_of_lists_and_objects_with_a_content(rule):
    """Without `items` or `properties`, xgrammar allows only empty ones beside it."""
    parts = {
        "a": {"type": ["number", "null"]},
        "b": {"type": "array", "items": {"type": "string"}},
        "c": {"type": "object", "properties": {"n": {"type": "integer"}}},
    }
    for part in parts.values():
        if rule:
            part["x-merge"] = rule
    whole = schema(**parts) | {"required": [*parts]}
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(whole))
    good = {"a": 1.5, "b": ["x", "y"], "c": {"n": 1}}
    assert accepts(grammar, json.dumps(good))
    assert accepts(grammar, json.dumps(good | {"a": None, "b": []}))
    assert not accepts(grammar, json.dumps(good | {"a": "1"}))
    assert not accepts(grammar, json.dumps(good | {"b": [1]}))
