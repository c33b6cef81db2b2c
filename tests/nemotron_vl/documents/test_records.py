"""Records of pages survive what happens to their writer."""

import errno
import json
import os
import subprocess
import sys

import pytest

from nemotron_vl.documents.records import Counts, PageRecords

SETTINGS = {"question": "q", "model": "m", "max_tokens": 9}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def opened(path, **changes):
    return PageRecords(path, SETTINGS | changes, "/root")


def write(path, *records, **changes):
    with opened(path, **changes) as records_of_file:
        for record in records:
            records_of_file.append(record)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


FIRST = {"file": "a.pdf", "page": 1, "answer": "eins\nzwei – drei"}
SECOND = {"file": "a.pdf", "page": 2, "answer": {"total": 3}}
BROKEN = {"file": "b.pdf", "page": None, "error": "encrypted"}
CUT = {"file": "b.pdf", "page": 2, "answer": "one tw", "cut": "It was cut."}


def test_records_are_found_again(path):
    write(path, FIRST, BROKEN)
    write(path, SECOND)
    head, *records = lines(path)
    assert (head["settings"], head["root"]) == (SETTINGS, "/root")
    assert records == [FIRST, BROKEN, SECOND]
    with opened(path) as again:
        assert list(again) == records
        assert again.counts() == Counts(3, 1, 0)
        assert again.counts({"a.pdf", "c.pdf"}) == Counts(2, 0, 0)
        assert again.done("a.pdf", 1) and again.done("a.pdf", 2)
        assert again.done("b.pdf", None)
        assert not again.done("a.pdf", 3) and not again.done("b.pdf", 1)


def test_a_record_of_several_pages_does_them_all(path):
    write(path, FIRST | {"pages": [1, 2, 4]})
    with opened(path) as records:
        assert [records.done("a.pdf", n) for n in (1, 2, 3, 4)] == [1, 1, 0, 1]


def test_a_record_that_was_cut_anywhere_is_written_again(path):
    write(path, FIRST, SECOND)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    start = whole.index(b"\n", head) + 1
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with opened(path) as records:
            assert records.done("a.pdf", 1) == (end >= start)
            assert not records.done("a.pdf", 2)
            for record in (FIRST, SECOND):
                if not records.done("a.pdf", record["page"]):
                    records.append(record)
        assert path.read_bytes() == whole


def test_a_page_is_not_written_twice(path):
    write(path, FIRST)
    with pytest.raises(ValueError, match="has page 1 of a.pdf already"):
        write(path, FIRST)
    assert lines(path)[1:] == [FIRST]


def test_unwanted_records_are_removed(path):
    write(path, FIRST, BROKEN, SECOND)
    with opened(path) as records:
        records.drop(lambda record: "error" in record)
        assert not records.done("b.pdf", None)
        assert records.done("a.pdf", 1) and records.done("a.pdf", 2)
        with pytest.raises(ValueError, match="Another process writes"):
            opened(path)
        records.append(BROKEN | {"error": "still"})
    assert [r.get("error") for r in lines(path)[1:]] == [None, None, "still"]
    assert list(path.parent.iterdir()) == [path]


def test_two_processes_do_not_write_to_one_file(path):
    refused = pytest.raises(ValueError, match="Another process writes to .*answers")
    with opened(path), refused:
        opened(path)
    write(path, FIRST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "p"}, "question 'q', not 'p'"),
        ({"model": "n", "max_tokens": 10}, "max tokens '9', not '10'; model 'm', not"),
        ({"max_tiles": 3}, "max tiles 'null', not '3'"),
        ({"question": "long " * 99}, r"question 'q', not 'long long .{60,90}' \.\.\."),
    ],
)
def test_answers_with_other_settings_are_kept_apart(path, changes, message):
    write(path, FIRST)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"answers with other settings: {message}"):
        opened(path, **changes)
    assert path.read_bytes() == before


def test_the_model_may_be_known_later(path):
    with opened(path, model=None) as records:
        records.settle("m")
        records.append(FIRST)
    with opened(path, model=None) as records:
        with pytest.raises(ValueError, match="model 'm', not 'other'"):
            records.settle("other")
        records.settle("m")


def test_a_setting_that_may_change_is_replaced(path):
    write(path, FIRST, CUT)
    changed = SETTINGS | {"max_tokens": 99}
    with PageRecords(path, changed, changeable={"max_tokens"}) as records:
        assert records.counts() == Counts(2, 0, 1)
        records.drop(lambda record: "cut" in record)
    assert lines(path)[0]["settings"] == changed
    assert lines(path)[1:] == [FIRST]
    write(path, CUT, max_tokens=99)


@pytest.mark.parametrize(
    "content",
    [
        *(b"%PDF-1.4", b"a report\nof two lines\n", b'{"total": 3}\n', b"[]\n"),
        b"\0\n\0",
        # Of a version that had no head.
        b'{"file": "a.pdf", "page": 1, "answer": "", "question": "0"}\n',
    ],
)
def test_another_file_is_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no file of answers .*: line 1\."):
        opened(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


FULL = """
import resource, signal, sys
from pathlib import Path
from nemotron_vl.documents.records import PageRecords
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with PageRecords(Path(sys.argv[1]), {"model": "m"}) as records:
    records.append({"file": "a", "page": 1, "answer": ""})
    size = records.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, size + 9))
    try:
        if sys.argv[2] == "append":
            records.append({"file": "a", "page": 2, "answer": ""})
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9, size + 9))
            records.drop(lambda record: False)
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize(("way", "suffix"), [("append", ""), ("drop", ".part")])
def test_a_full_disk_names_the_file(path, way, suffix):
    """A limit on the size of files stands for it."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, way], capture_output=True, text=True
    )
    kinds = [errno.ENOSPC, errno.EFBIG]
    messages = [f"[Errno {n}] {os.strerror(n)}: '{path}{suffix}'" for n in kinds]
    assert done.stdout.strip() in messages, done.stderr
    with PageRecords(path, {"model": "m"}) as records:
        assert records.counts().records == 1
