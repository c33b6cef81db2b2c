"""Run `nemotron-vl read` on the documents of the tests, and read its records."""

import json

from nemotron_vl.main import main
from support.fake_server import FakeServer


def run(server: FakeServer, paths, out, *options: str) -> int:
    question = () if "--schema" in options else ("--question", "Read it.")
    where = ("--url", server.url, "--out", str(out))
    return main(["read", str(paths), *question, *where, *options])


def records(out) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


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
