"""What is said about a server's answers."""

import pytest

from nemotron_vl.documents.answers import compared, is_empty, record_of, repeats
from nemotron_vl.documents.requests import Question

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the the the the " * 9, True),
        ("Once. " + "|---" * 30, True),
        ("a table\n" + "| 1 | 2 |\n" * 12, True),
        ("x" * 79, False),
        ("x" * 80, True),
        ("no no no", False),
        ("".join(f"line {i}\n" for i in range(200)), False),
        ("", False),
    ],
)
def test_repetition(text, expected):
    assert repeats(text) is expected


@pytest.mark.parametrize(
    "answer", ["", " \n", None, {}, [], {"a": None, "b": ["", {}]}]
)
def test_empty_answers(answer):
    assert is_empty(answer)


@pytest.mark.parametrize("answer", ["0", 0, False, {"a": None, "b": [0]}])
def test_answers_that_say_something(answer):
    assert not is_empty(answer)


def test_cut_answers_are_named():
    question = Question("?", None, 9)
    assert "cut" not in record_of(question, "whole", "stop")
    cut = record_of(question, "one tw", "length")
    assert cut["cut"] == "It was cut after 9 tokens." and "error" not in cut
    again = record_of(question, "again and " * 20, "length")
    assert again["cut"] == "It repeats itself up to the limit of 9 tokens."


def test_data_that_is_mostly_blank_names_the_option():
    record = record_of(Question(None, SCHEMA, 9), "{" + "\n" * 99, "length")
    assert "disable_any_whitespace" in record["error"]
    assert "limit of 9 tokens" in record["error"]
    record = record_of(Question(None, SCHEMA, 9), '{"a": "b"}', "stop")
    assert "disable_any_whitespace" not in record["error"]


@pytest.mark.parametrize(
    ("answer", "layer", "expected"),
    [
        ("Total: 12", "Total:\n  12 ", {"cer": 0.0, "characters": 9}),
        ("Total: 13", "Total: 12", {"cer": 0.1111, "characters": 9}),
        ("", "Total: 12", {"cer": 1.0, "characters": 9}),
        ("x" * 18, "abcdefghi", {"cer": 2.0, "characters": 9}),
        ("x", " ", {"cer": 1.0, "characters": 0}),
        ("", "", {"cer": 0.0, "characters": 0}),
    ],
)
def test_the_difference_to_the_text_layer(answer, layer, expected):
    assert compared(answer, layer) == expected


@pytest.mark.parametrize(
    ("answer", "layer", "expected"),
    [
        ({"total": 1388.02, "paid": False}, "1.388,02", {"cer": 0.0, "characters": 6}),
        ({"a": [870.0, "Öl"]}, "öl 870,00", {"cer": 0.0, "characters": 5}),
        ({"total": 1338, "b": "Öl"}, "Öl 1388", {"cer": 0.6667, "characters": 6}),
        ({"total": None}, "12", {"cer": 0.0, "characters": 0}),
        # What a page writes in another form.
        (
            {"day": "2024-03-04", "kind": "invoice"},
            "4. März",
            {"cer": 0, "characters": 0},
        ),
        ("Öl", "oil", {"cer": 1.0, "characters": 2}),
    ],
)
def test_values_that_the_text_layer_does_not_have(answer, layer, expected):
    schema = {"properties": {"kind": {"enum": ["invoice", None]}}}
    assert compared(answer, layer, schema) == expected
