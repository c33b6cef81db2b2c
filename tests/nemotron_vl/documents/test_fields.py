"""Properties of a schema, with the types that columns and inputs have."""

import pytest

from nemotron_vl.documents.fields import fields_of
from nemotron_vl.documents.results import Record

CIRCLE = {"anyOf": [{"$ref": "#/properties/x"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("part", "kind", "nullable"),
    [
        ({"type": "integer"}, "integer", False),
        ({"type": ["string", "null"]}, "string", True),
        ({"type": ["string", "integer"]}, "json", False),
        ({"type": "array"}, "json", False),
        ({}, "json", True),
        (True, "json", True),
        ({"enum": ["a", None]}, "string", True),
        ({"enum": [1, 2.5]}, "number", False),
        ({"const": True}, "boolean", False),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "number", True),
        ({"$ref": "#/$defs/a~1b"}, "string", False),
        ({"$ref": "#/$defs/missing"}, "json", True),
        ({"$ref": "#/properties/x"}, "json", True),
        (CIRCLE, "json", True),
    ],
)
def test_kinds(part, kind, nullable):
    schema = {"properties": {"x": part}, "$defs": {"a/b": {"type": "string"}}}
    (field,) = fields_of(schema, ())
    assert (field.name, field.kind, field.nullable) == ("x", kind, nullable)


def test_a_property_describes_itself_or_where_it_refers_to():
    there = {"type": "string", "description": "there", "x-merge": "last"}
    here = {"$ref": "#/$defs/d", "description": "here"}
    schema = {"properties": {"x": here}, "$defs": {"d": there}}
    (field,) = fields_of(schema, ())
    assert (field.description, field.merge) == ("here", "last")


def test_a_schema_of_a_model_may_itself_be_a_reference():
    inner = {"properties": {"x": {"type": "string"}}}
    schema = {"$ref": "#/$defs/Invoice", "$defs": {"Invoice": inner}}
    assert [field.name for field in fields_of(schema, ())] == ["x"]


def test_without_a_schema_the_answers_have_the_fields_and_none_needs_a_value():
    answers = [{"x": 1}, "a text", {"y": "two", "x": 3}]
    records = [Record("a", page, answer) for page, answer in enumerate(answers, 1)]
    fields = [(f.name, f.kind, f.nullable) for f in fields_of(None, records)]
    assert fields == [("x", "json", True), ("y", "json", True)]
