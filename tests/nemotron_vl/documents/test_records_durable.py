"""Records are on the disk in their order, with several writers and after a kill."""

import fcntl
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_vl.documents.records import PageRecords

FIRST = {"file": "a.pdf", "page": 1, "answer": "one"}
CUT = {"file": "a.pdf", "page": 2, "answer": "one tw", "cut": "It was cut."}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def opened(path):
    return PageRecords(path, {"model": "m"})


def test_each_record_is_on_the_disk_before_the_next(path, monkeypatch):
    steps = []
    sync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        steps.append(("synced", os.fstat(number).st_size))
        sync(number)

    def replaced(part: Path, file: Path) -> None:
        steps.append(("replaced", part.stat().st_size))
        replace(part, file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    with opened(path) as records:
        for record in (FIRST, CUT):
            records.append(record)
            assert steps == [("synced", path.stat().st_size)]
            steps.clear()
        records.retry({"a.pdf"}, {"cut"})
        records.append(CUT)
        steps.clear()
    size = path.stat().st_size
    assert steps == [("synced", size), ("replaced", size)]


def test_a_file_that_another_process_replaces_is_not_written(path, monkeypatch):
    """Between the opening and the lock: the lock is on a file that nobody sees."""
    with opened(path) as records:
        records.append(FIRST)
    lock = fcntl.flock

    def replace_and_lock(file, how: int) -> None:
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    with pytest.raises(ValueError, match="Another process writes to .*answers"):
        opened(path)


STEPS = st.tuples(
    st.integers(0, 1),  # which writer
    st.sampled_from(["append", "append", "error", "retry", "close", "kill"]),
    st.integers(1, 3),  # page
    st.integers(0, 60),  # bytes of a line that a killed writer leaves
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=20))
def test_of_two_writers_one_writes_and_loses_nothing(steps):
    writers: list[PageRecords | None] = [None, None]
    expected: dict[int, dict] = {}
    retried: set[int] = set()
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        path = Path(folder, "answers.jsonl")
        for number, (writer, step, page, left) in enumerate(steps):
            if writers[1 - writer] is not None:
                with pytest.raises(ValueError, match="Another process writes"):
                    opened(path)
                continue
            records = writers[writer] or opened(path)
            writers[writer] = records
            assert {p for p in (1, 2, 3) if records.done("a.pdf", p)} == (
                expected.keys() - retried
            )
            if step == "retry":
                records.retry({"a.pdf"}, {"error"})
                retried |= {p for p, r in expected.items() if "error" in r}
            elif step in ("append", "error") and not records.done("a.pdf", page):
                key = "error" if step == "error" else "answer"
                expected[page] = {"file": "a.pdf", "page": page, key: str(number)}
                records.append(expected[page])
                retried.discard(page)
            elif step == "close":
                records.__exit__()
            elif step == "kill":
                records._file.close()
                if expected:  # otherwise the head is missing, too
                    with path.open("ab") as file:
                        file.write(json.dumps(expected[max(expected)]).encode()[:left])
            if step in ("close", "kill"):
                writers[writer] = None
                retried.clear()
        for records in filter(None, writers):
            records.__exit__()
        with opened(path) as records:
            found = list(records)
    assert {r["page"]: r for r in found} == expected
    assert len(found) == len(expected)
