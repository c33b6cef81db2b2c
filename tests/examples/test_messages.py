"""Messages that docs/troubleshooting.md quotes are printed by the source it names.

A message is a code span in the first column of a table whose second column is
"printed by". In it, ``...`` stands for any text.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()


def installed(package: str) -> Path:
    (folder,) = find_spec(package).submodule_search_locations
    return Path(folder)


SOURCES = {
    "this package": [ROOT / "vllm", ROOT / "nemotron_vl"],
    "vLLM": [installed("vllm")],
    "httpcore": [installed("httpcore")],
    "Python": [Path(sysconfig.get_path("stdlib"), "importlib")],
}
# Printed by programs that are not written in Python.
OF_THE_SYSTEM = {"fatal error: Python.h", "libnuma.so.1", "Connection reset by peer"}

GAP = "\0"  # the value of an f-string or a format


class Message(NamedTuple):
    text: str
    printed_by: str


def rows(page: str) -> Iterator[list[str]]:
    """Cells of the rows of tables that have a column "printed by"."""
    with_messages = False
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[1:2] == ["printed by"]:
            with_messages = True
        elif not cells:
            with_messages = False
        elif with_messages and not cells[0].startswith("---"):
            yield cells


MESSAGES = [
    Message(text, cells[1])
    for cells in rows(PAGE)
    for text in re.findall("`([^`]+)`", cells[0])
]


def templates(node: ast.AST) -> Iterator[str]:
    """Texts that code can print, with a gap for each value in them."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.JoinedStr):
        yield "".join(
            part.value if isinstance(part, ast.Constant) else GAP
            for part in node.values
        )
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%[sdr]", GAP, node.value)
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from templates(child)


@cache
def contents(source: Path) -> list[str]:
    """Text of each Python file in a folder."""
    return [file.read_text(errors="replace") for file in source.rglob("*.py")]


def is_printed(message: str, sources: list[Path]) -> bool:
    """Whether a text of the source has the parts of a message in their order."""
    parts = [part.strip() for part in message.split("...")]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    # Parsing all files would take minutes.
    words = re.findall(r"[A-Za-z]{4,}", message)
    return any(
        pattern.search(text)
        for source in sources
        for content in contents(source)
        if all(word in content for word in words)
        for text in templates(ast.parse(content))
    )


def test_messages_are_found():
    assert len(MESSAGES) > 30
    assert {m.printed_by for m in MESSAGES} == {*SOURCES, "the system"}
    assert {m.text for m in MESSAGES if m.printed_by == "the system"} == OF_THE_SYSTEM


def test_every_row_has_a_message():
    assert all("`" in cells[0] for cells in rows(PAGE))


@pytest.mark.parametrize(
    "message",
    [m for m in MESSAGES if m.printed_by in SOURCES],
    ids=lambda message: message.text[:40],
)
def test_it_is_printed(message):
    assert is_printed(message.text, SOURCES[message.printed_by])


@pytest.mark.parametrize(
    "wrong",
    [
        "Unknown additional_config",
        "The checkpoint lacks ... of ... images",
        "ranks. ... is not divisible by",
    ],
)
def test_a_wrong_message_is_seen(wrong):
    assert not is_printed(wrong, SOURCES["this package"])
