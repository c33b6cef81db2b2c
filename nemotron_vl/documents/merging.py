# SPDX-License-Identifier: Apache-2.0
"""The answers about the pages of a document, merged into one.

The keyword ``x-merge`` of a property in the schema says how:

- "agree", the default: the value that most pages give, of two that are given as often
  the earlier one. All values are listed with their pages if there are several.
- "first" and "last": the value of the first or last page that has one.
- "sum": of numbers, as decimals.
- "list": all values in the order of the pages; lists are joined.

``null`` is no value. Pages with errors do not take part.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from .fields import Field, as_text, fields_of
from .results import Record, Results
from .schemas import MERGE

RULES = ("agree", "first", "last", "sum", "list")

_Given = list[tuple[int, Any]]  # page and value


def merge_documents(results: Results) -> Iterator[Record]:
    """One record for each document. Texts are joined with empty lines.

    Raises:
        ValueError: There is data without a schema, a rule is unknown, or values cannot
            be summed.
    """
    fields = fields_of(results.schema, ())
    for field in fields:
        if field.merge not in RULES:
            known = ", ".join(RULES)
            raise ValueError(
                f"{MERGE} of {field.name!r} is {field.merge!r}. Choose one of {known}."
            )
    whole = results.settings.get("per") == "document"
    for name, records in results.documents():
        if whole and len(records) == 1:
            yield records[0]
        else:
            yield _merge(name, records, fields)


def _merge(name: str, records: list[Record], fields: list[Field]) -> Record:
    good = [record for record in records if record.error is None and not record.blank]
    pages = sorted({page for record in records for page in record.pages})
    merged = Record(
        name,
        pages[0] if pages else None,
        error=_with_pages(records, "error"),
        cut=_with_pages(records, "cut"),
        blank=all(record.blank for record in records),
        copy_of=records[0].copy_of,
        pages=pages,
        source=records[0].source,
        corrected=any(record.corrected for record in records),
    )
    compared = [(r.cer, r.characters) for r in records if r.cer is not None]
    if length := sum(characters for _, characters in compared):
        errors = sum(cer * characters for cer, characters in compared)
        merged.cer, merged.characters = errors / length, length
    if all(isinstance(record.answer, str | None) for record in good):
        merged.answer = "\n\n".join(r.answer for r in good if r.answer) or None
        return merged
    if not fields or not all(isinstance(record.answer, dict) for record in good):
        raise ValueError(
            f"{name}: its answers are data, and the records have no schema with "
            "properties to merge them. Export a row a page: --per page."
        )
    merged.answer, conflicts = {}, []
    for field in fields:
        given = [
            (record.page or 0, value)
            for record in good
            if (value := record.answer.get(field.name)) is not None
        ]
        merged.answer[field.name], conflict = _value(name, field, given)
        if conflict:
            conflicts.append(f"{field.name}: {conflict}")
    merged.conflicts = "; ".join(conflicts) or None
    return merged


def _with_pages(records: list[Record], key: str) -> str | None:
    """A remark of several pages."""
    found = []
    for record in records:
        if text := getattr(record, key):
            found.append(text if record.page is None else f"Page {record.page}: {text}")
    return "\n".join(found) or None


def _value(file: str, field: Field, given: _Given) -> tuple[Any, str]:
    """The value of a property, and the other ones."""
    if field.merge == "list":
        return [
            item
            for _, value in given
            for item in (value if isinstance(value, list) else [value])
        ], ""
    if not given:
        return None, ""
    if field.merge in ("first", "last"):
        return given[0 if field.merge == "first" else -1][1], ""
    if field.merge == "sum":
        return _sum(file, field.name, given), ""
    pages: dict[str, list[int]] = {}
    for page, value in given:
        pages.setdefault(json.dumps(value, sort_keys=True), []).append(page)
    most = max(pages.values(), key=len)  # the first of several
    value = next(value for page, value in given if page == most[0])
    if len(pages) == 1:
        return value, ""
    values = {page: as_text(value) for page, value in given}
    return value, ", ".join(
        f"{values[places[0]]} ({_pages(places)})" for places in pages.values()
    )


def _pages(numbers: list[int]) -> str:
    return f"page{'s' if numbers[1:] else ''} {', '.join(map(str, numbers))}"


def _sum(file: str, name: str, given: _Given) -> int | float:
    for page, value in given:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"{file}, page {page}: {name!r} is {json.dumps(value)[:80]}, and "
                f'{MERGE} "sum" adds numbers.'
            )
    if all(isinstance(value, int) for _, value in given):
        return sum(value for _, value in given)
    return float(sum(Decimal(str(value)) for _, value in given))
