# SPDX-License-Identifier: Apache-2.0
"""Records as the rows of a table: CSV, Parquet, or JSON lines.

A row has ``document``, ``page`` or ``pages``, a column for each property of the schema,
and the columns of `_REMARKS`. Text that is not such data is in the column ``answer``.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .fields import Field, as_text, kind_of
from .outputs import replaced_file
from .results import Record

_REMARKS = ("error", "cut", "blank", "cer", "conflicts", "corrected")
_FITTING = {"number": {"number", "integer"}}  # JSON types besides the kind itself
_LARGEST = 1 << 63  # of Parquet's integers
_MARK = b"nemotron-vl export"  # in the metadata of a Parquet file

# What spreadsheets take for a formula. A number with a sign is none that does harm.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![0-9 .,/()%-]*$)")

Row = dict[str, Any]


def rows(records: Iterable[Record], fields: list[Field], per: str) -> Iterator[Row]:
    """A row for each record.

    Args:
        records: Of pages, or of documents.
        fields: Properties that have columns. One whose name is that of another column
            is named ``answer.NAME``.
        per: "page" or "document".
    """
    for record in records:
        row: Row = {"document": _encodable(record.file)}
        row |= {"page": record.page} if per == "page" else {"pages": record.pages}
        data = record.answer if fields and isinstance(record.answer, dict) else None
        for field in fields:
            row[column(field)] = None if data is None else data.get(field.name)
        row["answer"] = record.answer if data is None else None
        yield row | {name: getattr(record, name) for name in _REMARKS}


def column(field: Field) -> str:
    """Name of the column of a property."""
    name = _encodable(field.name)
    own = {"document", "page", "pages", "answer", *_REMARKS}
    return f"answer.{name}" if name in own or name.startswith("answer.") else name


def _encodable(text: str) -> str:
    """A text that is UTF-8. Names of files may not be."""
    return text.encode(errors="backslashreplace").decode()


def write_jsonl(path: Path, found: Iterable[Row]) -> None:
    """A JSON object for each row."""
    with replaced_file(path, b'{"document": ') as file:
        for row in found:
            file.write(json.dumps(row).encode() + b"\n")


def write_csv(path: Path, found: Iterable[Row]) -> None:
    """UTF-8 with a mark that makes Excel read it as such.

    A text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    start = "\ufeffdocument,page".encode()
    with replaced_file(path, start) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "backslashreplace", newline="")
        writer = csv.writer(text)
        for number, row in enumerate(found):
            if number == 0:
                writer.writerow(map(_inert, row))
            if "pages" in row:
                row["pages"] = " ".join(map(str, row["pages"]))
            writer.writerow(map(_cell, row.values()))
        text.detach()


def _cell(value: Any) -> str:
    return _inert(as_text(value)) if isinstance(value, str) else as_text(value)


def _inert(text: str) -> str:
    return "'" + text if _FORMULA.match(text) else text


def write_parquet(path: Path, found: Iterable[Row], fields: list[Field]) -> None:
    """Columns have the types of the schema where it gives a simple one.

    Other values are JSON, and so are all of a property if one of them does not fit.
    """
    import pyarrow
    from pyarrow import parquet

    known: dict[str, str] = {"page": "integer", "cer": "number"}
    known |= {"blank": "boolean", "corrected": "boolean"}
    known |= {column(field): field.kind for field in fields}
    types = {"integer": pyarrow.int64(), "number": pyarrow.float64()}
    types |= {"boolean": pyarrow.bool_()}
    table = [*found]
    columns = {}
    for name in table[0]:
        values = [row[name] for row in table]
        if name == "pages":
            kind = pyarrow.list_(pyarrow.int64())
        elif known.get(name) in types and all(_fits(v, known[name]) for v in values):
            kind = types[known[name]]
        else:
            kind = pyarrow.string()
            values = [None if v is None else _encodable(as_text(v)) for v in values]
        columns[name] = pyarrow.array(values, kind)
    made = pyarrow.table(columns).replace_schema_metadata({b"made_by": _MARK})
    with replaced_file(path, b"PAR1", _MARK) as file:
        parquet.write_table(made, file, compression="zstd")


def _fits(value: Any, kind: str) -> bool:
    """Whether a column can hold a value."""
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return False
    return value is None or kind_of(value) in _FITTING.get(kind, {kind})
