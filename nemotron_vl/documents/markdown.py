# SPDX-License-Identifier: Apache-2.0
"""Records as a Markdown file for each document."""

import json
import os
from typing import Any

from ..printable import printable
from .fields import as_text
from .outputs import OutputFolder, safe_name
from .results import Record, Results

_SIMPLE = (str, int, float, type(None))


def write_markdown(folder: OutputFolder, results: Results) -> None:
    """Write a file for each document, in the folders of the documents.

    The answers are as the model wrote them, also if they hold Markdown or HTML.

    Args:
        folder: Where they are written.
        results: Records of pages, or of documents.

    Raises:
        OSError: A file cannot be written.
        ValueError: A place is taken.
    """
    above = common_folder([record.file for record in results.records])
    taken: set[str] = set()
    for name, records in results.documents():
        text = "\n\n".join(part for record in records for part in _page(record))
        text = f"# {_line(os.path.basename(name))}\n\n{text}\n"
        place = safe_name(name[len(above) :], ".md", taken)
        folder.write(place, text.encode(errors="backslashreplace"))


def common_folder(names: list[str]) -> str:
    """The folder, with ``/``, of all documents whose names are absolute paths."""
    if not all(name.startswith("/") for name in names):
        return ""
    folders = os.path.commonpath([os.path.dirname(name) for name in names])
    return folders if folders.endswith("/") else folders + "/"


def _page(record: Record) -> list[str]:
    """The parts of a page, which are separated by empty lines."""
    numbers = ", ".join(map(str, record.pages)) or "unknown"
    parts = [f"<!-- page{'s' if record.pages[1:] else ''} {numbers} -->"]
    for title, text in (
        ("Error", record.error),
        ("Cut", record.cut),
        ("Blank", "The page was left out." if record.blank else None),
        ("Pages differ", record.conflicts),
    ):
        if text:
            lines = _line(text, "\n").split("\n")
            parts.append(f"> **{title}:** " + "\n> ".join(lines))
    answer = record.answer
    if isinstance(answer, dict):
        parts += _data(answer)
    elif answer is not None:
        parts.append(answer if isinstance(answer, str) else _json(answer))
    return parts


def _data(answer: dict[str, Any]) -> list[str]:
    """A table of the simple values, and a part for each other one."""
    simple = {k: v for k, v in answer.items() if isinstance(v, _SIMPLE)}
    parts = [_table(["", "value"], [[*pair] for pair in simple.items()])]
    for name, value in answer.items():
        if name in simple:
            continue
        parts.append(f"**{_cell(name)}**")
        if _is_table(value):
            titles = [*dict.fromkeys(key for row in value for key in row)]
            table = [[row.get(title) for title in titles] for row in value]
            parts.append(_table(titles, table))
        elif isinstance(value, list) and all(isinstance(v, _SIMPLE) for v in value):
            parts.append("\n".join(f"- {_cell(item)}" for item in value) or "(none)")
        else:
            parts.append(_json(value))
    return parts if simple else parts[1:]


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) for row in value)
        and all(isinstance(cell, _SIMPLE) for row in value for cell in row.values())
    )


def _table(titles: list[str], table: list[list[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *table]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    text = _line(as_text(value), "\n").replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "\\<").replace("\n", "<br>")


def _line(text: str, kept: str = "") -> str:
    return printable(text, kept)


def _json(value: Any) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return f"```json\n{text}\n```"
