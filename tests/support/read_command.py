"""`nemotron-vl read` on the documents of the tests: its arguments and its records."""

import json

from support.fake_server import FakeServer


def arguments(server: FakeServer, paths, out, *options: str) -> list[str]:
    """Of the command that asks a server about documents."""
    question = () if "--schema" in options else ("--question", "Read it.")
    where = ("--url", server.url, "--out", str(out))
    return ["read", str(paths), *question, *where, *options]


def records(out) -> list[dict]:
    """Without the head."""
    return [json.loads(line) for line in out.read_text().splitlines()[1:]]


def places(out) -> list[tuple[str, int | None]]:
    """File name and page of each record, in order of the names."""
    found = [(r["file"].rpartition("/")[2], r["page"]) for r in records(out)]
    return sorted(found, key=str)


# File and page of all pages, and of those and the files that cannot be read.
SIX = [
    ("photo.png", 1),
    *(("report.pdf", number) for number in (1, 2, 3)),
    *(("scan.tif", number) for number in (1, 2)),
]
ALL = sorted([*SIX, ("broken.pdf", None), ("locked.pdf", None)], key=str)
# Of what is asked about an invoice.
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}, "currency": {"enum": ["EUR", "USD"]}},
    "required": ["total"],
}
