# SPDX-License-Identifier: Apache-2.0
"""The properties of a schema, as columns of a table and fields of a form."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from .results import Record
from .schemas import MERGE

_SIMPLE = {"string", "number", "integer", "boolean"}
_MOST_REFERENCES = 10  # of a property; a chain may be a circle


class Field(NamedTuple):
    """A property of the answers.

    Args:
        name: In the schema.
        kind: "string", "number", "integer", "boolean", or "json" for all others.
        nullable: Whether it may be ``null``.
        choices: All values it may have, if the schema lists them.
        merge: How the values of several pages become one, see `merging`.
        description: Of the schema.
    """

    name: str
    kind: str = "json"
    nullable: bool = True
    choices: list[Any] | None = None
    merge: str = "agree"
    description: str = ""


def fields_of(schema: dict[str, Any] | None, records: Iterable[Record]) -> list[Field]:
    """The properties of a schema, or without one, those that the answers have.

    Returns:
        An empty list if the answers are text, or no objects.
    """
    if schema is not None:
        properties = _resolved(schema, schema).get("properties")
        if not isinstance(properties, dict):
            return []
        return [_field(name, part, schema) for name, part in properties.items()]
    names: dict[str, None] = {}
    for record in records:
        if isinstance(record.answer, dict):
            names |= dict.fromkeys(record.answer)
    return [Field(name) for name in names]


def _field(name: str, part: Any, schema: dict[str, Any]) -> Field:
    outer = part if isinstance(part, dict) else {}
    part = _resolved(outer, schema)
    choices = part.get("enum")
    if "const" in part:
        choices = [part["const"]]
    kinds = _kinds(part, schema)
    nullable = "null" in kinds
    kinds -= {"null"}
    kind = next(iter(kinds)) if len(kinds) == 1 and kinds <= _SIMPLE else "json"
    texts = {"merge": outer.get(MERGE, part.get(MERGE, "agree"))}
    texts["description"] = str(outer.get("description", part.get("description", "")))
    return Field(name, kind, nullable, choices, **texts)


def _kinds(part: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> set[str]:
    """Types that a part of a schema allows, where it says so."""
    if depth > _MOST_REFERENCES:
        return {"json"}
    if isinstance(choices := part.get("enum", [part.get("const", ...)]), list):
        names = {kind_of(choice) for choice in choices if choice is not ...}
        if names:
            return {"number"} if names == {"number", "integer"} else names
    for key in ("anyOf", "oneOf"):
        if isinstance(options := part.get(key), list):
            found: set[str] = set()
            for option in options:
                found |= _kinds(_resolved(option, schema), schema, depth + 1)
            return found
    kinds = part.get("type", ["json", "null"])
    return set(kinds) if isinstance(kinds, list) else {kinds}


def _resolved(part: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """The part that a reference within the schema leads to."""
    for _ in range(_MOST_REFERENCES):
        if not isinstance(part, dict):
            return {}
        reference = part.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return part
        part = schema
        for key in reference[1:].split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            part = part.get(key) if isinstance(part, dict) else None
    return {}


def kind_of(value: Any) -> str:
    """JSON type of a value."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return names.get(type(value), "json")


def as_text(value: Any) -> str:
    """A value in a text: JSON, if it is not a text itself."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
