# SPDX-License-Identifier: Apache-2.0
"""Records that `nemotron-vl read` wrote, for those who use them.

    from nemotron_vl.documents.results import read_records

    for record in read_records(Path("answers.jsonl")).records:
        print(record.file, record.page, record.answer)

`merging.merge_documents` makes one record of each document.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..regular_files import open_regular
from .answers import is_empty

_MOST_BYTES = 1 << 26  # of a line, far more than a server's answer takes
_SUFFIXES = {".json", ".jsonl"}  # of the part files in a folder
_QUARTERS = (0, 90, 180, 270)


@dataclass
class Record:
    """What is known of a page, or of a document.

    Args:
        file: Name of the document.
        page: From 1; ``None`` for a document, or the rest of it, that was not read.
        answer: Text, or data of a schema; ``None`` if there is none.
        error: Why there is no answer, or why it does not follow the schema.
        cut: How the answer was cut.
        blank: Whether the page was left out as blank.
        turned: Degrees by which the page was turned clockwise.
        cer: Character error rate of the answer against the PDF's own text.
        characters: Length of that text.
        copy_of: Name of an equal document that was asked in the place of this one.
        pages: Numbers of the pages that the answer is about.
        source: Size, time and digest of the document when it was read.
        found: How it was found for a question.
        conflicts: Values of properties on which pages disagree, with these pages.
        corrected: Whether a person has corrected the answer.
    """

    file: str
    page: int | None
    answer: Any = None
    error: str | None = None
    cut: str | None = None
    blank: bool = False
    turned: int = 0
    cer: float | None = None
    characters: int = 0
    copy_of: str | None = None
    pages: list[int] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)
    conflicts: str | None = None
    found: str | None = None
    corrected: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is neither an answer nor an error."""
        return self.error is None and is_empty(self.answer)

    @property
    def digest(self) -> str:
        """Of the answer: a correction names what it corrects."""
        text = json.dumps(self.answer, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __str__(self) -> str:
        page = "" if self.page is None else f", page {self.page}"
        return f"{self.file}{page}"


class Results(NamedTuple):
    """A file of records.

    Args:
        settings: What was asked; empty if the file does not say it.
        root: Folder of the documents whose names are relative.
        records: Documents in the order of their names, pages in that of their numbers.
    """

    settings: dict[str, Any]
    root: str | None
    records: list[Record]

    @property
    def schema(self) -> dict[str, Any] | None:
        return self.settings.get("schema")

    def documents(self) -> Iterator[tuple[str, list[Record]]]:
        """Name and records of each document."""
        for name, records in itertools.groupby(self.records, lambda r: r.file):
            yield name, list(records)


def read_records(path: Path) -> Results:
    """Read a file of records, or a folder of part files.

    A line without an end that is no JSON is left out: the writer was interrupted. Of
    two records of a page the later one counts, and of a document that has changed those
    of its last state.

    Args:
        path: The file or folder. A URL of fsspec is fetched by the caller.

    Raises:
        OSError: A file cannot be read.
        ValueError: A line is no record, or there is none; names file and line.
    """
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in _SUFFIXES)
    head: dict[str, Any] = {}
    records: dict[tuple[str, int | None], Record] = {}
    states: dict[str, str] = {}
    for file in files:
        for number, data in _lines(file):
            try:
                if "settings" in data and "file" not in data:
                    if number > 1 or path.is_dir():
                        raise ValueError("a head is the first line of a file")
                    head = _head(data)
                    continue
                record = _record(data)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}.") from error
            records[record.file, record.page] = record
            if digest := record.source.get("sha256"):
                states[record.file] = digest
    if not records:
        raise ValueError(f"{path} has no records.")
    last = (
        r
        for r in records.values()
        if r.source.get("sha256") in (None, states.get(r.file))
    )
    ordered = sorted(last, key=_place)
    return Results(head.get("settings", {}), head.get("root"), ordered)


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and data of each line."""
    with open_regular(file) as lines:
        for number in itertools.count(1):
            line = lines.readline(_MOST_BYTES)
            if not line:
                return
            try:
                data = json.loads(line, parse_constant=_refuse)
                if not isinstance(data, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n") and len(line) < _MOST_BYTES:
                    return
                raise ValueError(f"{file}, line {number} is no record.") from error
            yield number, data


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _head(data: dict[str, Any]) -> dict[str, Any]:
    settings, root = data["settings"], data.get("root")
    if not isinstance(settings, dict) or not isinstance(root, str | None):
        raise ValueError("the head has other settings than `nemotron-vl read` writes")
    if not isinstance(settings.get("schema"), dict | None):
        raise ValueError("the schema is not an object")
    return data


_NAMES = {f.name for f in fields(Record)} - {"cer", "characters", "conflicts", "found"}
_KINDS: dict[str, Any] = {
    "file": str,
    "page": int | None,
    "error": str | None,
    "cut": str | None,
    "blank": bool,
    "turned": int,
    "copy_of": str | None,
    "pages": list,
    "source": dict,
    "text_layer": dict,
}


def _record(data: dict[str, Any]) -> Record:
    """A record of the data of a line.

    Raises:
        ValueError: A key is missing, or its value is of another kind.
    """
    for key in ("file", "page"):
        if key not in data:
            raise ValueError(f"there is no {key!r}")
    for key, kind in _KINDS.items():
        if key in data and not isinstance(data[key], kind):
            raise ValueError(f"{key!r} is {json.dumps(data[key])[:80]}")
    known = {key: data[key] for key in _NAMES & {*data}}
    record = Record(**known, **_text_layer(data.get("text_layer", {})))
    numbers = [*record.pages, *([] if record.page is None else [record.page])]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("a page has a number from 1")
    if record.turned not in _QUARTERS:
        raise ValueError(f"'turned' is {record.turned}")
    if record.cut is None and data.get("finish_reason") == "length":
        record.cut = "It was cut."
    if not record.pages and record.page is not None:
        record.pages = [record.page]
    return record


def _text_layer(data: dict[str, Any]) -> dict[str, Any]:
    cer, characters = data.get("cer"), data.get("characters", 0)
    if not isinstance(cer, int | float | None) or not isinstance(characters, int):
        raise ValueError("'text_layer' has no numbers")
    return {"cer": cer, "characters": characters}


def _place(record: Record) -> tuple[Any, ...]:
    """Sorts records: "page 10" follows "page 9", and errors of a document its pages."""
    parts = [_natural(part) for part in record.file.split("/")]
    return parts, record.file, record.page is None, record.page or 0


def _natural(text: str) -> list[Any]:
    pieces = re.split("([0-9]+)", text)  # text and digits take turns
    for index in range(1, len(pieces), 2):
        digits = pieces[index].lstrip("0")
        pieces[index] = (len(digits), digits)  # type: ignore[call-overload]
    return pieces
