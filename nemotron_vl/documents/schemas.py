# SPDX-License-Identifier: Apache-2.0
"""JSON schemas of answers, and whether an answer follows one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..regular_files import read_text

MERGE = "x-merge"  # how the values of several pages become one, see `merging`


def read_schema(file: Path) -> dict[str, Any]:
    """A schema in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a JSON schema; names it.
    """
    try:
        schema = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    check_schema(schema, str(file))
    return schema


def check_schema(schema: Any, name: str) -> None:
    """Refuse what is not a JSON schema, or refers to what it does not have.

    Args:
        schema: JSON data.
        name: What the message calls it.

    Raises:
        ValueError: It is none.
    """
    import jsonschema
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, dict):
        raise ValueError(f"{name} must hold a JSON object, a schema.")
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        message = f"{name} is not a JSON schema: {error.json_path}: {error.message}"
        raise ValueError(message) from error
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            message = f"{name} refers to {reference}, which it does not have."
            raise ValueError(message) from error


def parse(answer: str, schema: dict[str, Any]) -> Any:
    """The data of an answer.

    Raises:
        ValueError: It does not follow the schema.
    """
    import jsonschema
    from pydantic_core import from_json
    from referencing.exceptions import Unresolvable

    try:
        # Refuses what is nested so deeply that it could not be written again.
        data = from_json(answer, allow_inf_nan=False)
        json.dumps(data, allow_nan=False)  # 1e999 is read as infinity
    except ValueError as error:
        raise ValueError(f"The answer is not JSON: {error}") from error
    try:
        jsonschema.validate(data, schema)
    except jsonschema.ValidationError as error:
        at = error.json_path
        message = f"The answer does not follow the schema: {at}: {error.message}"
        raise ValueError(message) from error
    except RecursionError as error:
        raise ValueError("The answer is nested too deeply.") from error
    except Unresolvable as error:
        message = f"The schema refers to what it does not have: {error.ref}"
        raise ValueError(message) from error
    return data


def without_rules(schema: Any) -> Any:
    """A schema without our keyword `MERGE`, which vLLM's grammars misunderstand."""
    if isinstance(schema, dict):
        return {
            key: without_rules(value)
            for key, value in schema.items()
            if key != MERGE or not isinstance(value, str)  # a property of that name
        }
    return [*map(without_rules, schema)] if isinstance(schema, list) else schema


def enumerated(schema: Any) -> Iterator[Any]:
    """The values that a schema lists, wherever."""
    if isinstance(schema, dict):
        values = schema.get("enum")
        yield from values if isinstance(values, list) else ()
        if "const" in schema:
            yield schema["const"]
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, (dict, list)):
            yield from enumerated(part)


def _references(schema: Any) -> Iterator[str]:
    """Each reference to a place in the same schema, unless it has other names."""
    if isinstance(schema, dict):
        if "$id" in schema:
            return
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
    values = schema.values() if isinstance(schema, dict) else schema
    for value in values if isinstance(schema, (dict, list)) else ():
        yield from _references(value)
