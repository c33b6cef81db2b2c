"""Tables in Markdown: how many answers are right, by what images have in common."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Record:
    """A question's facts, the expected text and the answer."""

    facts: dict[str, Any]
    truth: str
    answer: str

    @property
    def right(self) -> bool:
        return self.truth == self.answer


def accuracy(rights: list[bool]) -> str:
    if not rights:
        return "none"
    return f"{100 * sum(rights) / len(rights):.1f} % of {len(rights)}"


def _band(name: str, edges: tuple[float, ...], unit: str = "") -> Callable:
    """Groups a fact by bands between ``edges``; the first and the last are open."""

    def band(record: Record) -> tuple[int, str] | None:
        value = record.facts.get(name)
        if value is None:
            return None
        number = sum(value >= edge for edge in edges)
        if not number:
            return number, f"less than {edges[0]:g}{unit}"
        if number == len(edges):
            return number, f"{edges[-1]:g}{unit} or more"
        return number, f"{edges[number - 1]:g} to {edges[number]:g}{unit}"

    return band


def _value(name: str) -> Callable:
    def value(record: Record) -> Hashable:
        return record.facts.get(name)

    return value


_KINDS = {
    "read": "one line",
    "lines": "two or three lines, one or all of them",
    "both": "two images",
    "count": "number of characters",
    "first": "first character",
}


def _kind(record: Record) -> str:
    return _KINDS[record.facts["kind"]]


def is_plain_line(record: Record) -> bool:
    """A plain dark-on-light line of up to 8 characters that is to be read."""
    facts = record.facts
    return (
        facts.get("style") == "plain"
        and facts["kind"] == "read"
        and facts["length"] <= 8
    )


# Title, group, and whether only single lines that are to be read count.
_TABLES: tuple[tuple[str, Callable, bool], ...] = (
    ("question", _kind, False),
    ("style", _value("style"), False),
    ("shape of the image", _value("layout"), True),
    ("font size", _band("height", (20, 30, 50, 80), " pixels"), True),
    ("least margin", _band("margin", (0.1, 0.5, 1, 2), " font sizes"), True),
    ("contrast of ink and paper", _band("contrast", (0.4, 0.6, 0.8)), True),
    ("characters of a single line", _value("length"), True),
    ("tiles of a single line, without the thumbnail", _value("tiles"), True),
    ("lines", _value("lines"), False),
)


def by_category(records: list[Record]) -> str:
    """All tables whose facts the records have."""
    lines = [f"All questions: {accuracy([r.right for r in records])}."]
    plain = [r.right for r in records if is_plain_line(r)]
    if plain:
        lines.append(
            "Plain dark-on-light lines of up to 8 characters: " + accuracy(plain) + "."
        )
    singles = [r for r in records if r.facts["kind"] == "read"]
    one = [r.right for r in singles if r.facts["tiles"] == 1]
    more = [r.right for r in singles if r.facts["tiles"] > 1]
    lines.append(
        f"Single lines in one tile: {accuracy(one)}; in several: {accuracy(more)}."
    )
    spanning = [r.right for r in singles if r.facts.get("spans tiles")]
    if spanning:
        lines.append(f"Single lines that span several tiles: {accuracy(spanning)}.")
    for title, group, single in _TABLES:
        groups = defaultdict(list)
        for record in singles if single else records:
            key = group(record)
            if key is not None:
                groups[key].append(record.right)
        if len(groups) < 2:
            continue
        lines += ["", f"| {title} | right |", "|---|---|"]
        for key in sorted(groups):
            name = key[1] if isinstance(key, tuple) else key
            lines.append(f"| {name} | {accuracy(groups[key])} |")
    return "\n".join(lines)


def write(page: Path, name: str, text: str) -> None:
    """Replace what a page has between the marks of ``name``.

    Raises:
        ValueError: The page lacks the marks.
    """
    start = f"<!-- evaluate_tiny: {name} -->"
    pattern = re.compile(f"(?<={re.escape(start)}\n).*?(?=<!-- end -->)", re.DOTALL)
    replaced, count = pattern.subn(lambda _: f"\n{text}\n\n", page.read_text())
    if count != 1:
        raise ValueError(f"{page} lacks {start} ... <!-- end -->.")
    page.write_text(replaced)
