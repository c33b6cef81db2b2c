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


def test_records_stay_until_others_replace_them(path):
    write(path, FIRST, BROKEN, SECOND, CUT)
    before = path.read_bytes()
    with opened(path) as records:
        records.retry({"b.pdf"}, {"error", "cut"})
        assert not records.done("b.pdf", None) and not records.done("b.pdf", 2)
        assert records.done("a.pdf", 1) and records.done("a.pdf", 2)
        with pytest.raises(ValueError, match="Another process writes"):
            opened(path)
    assert path.read_bytes() == before  # nothing came
    with opened(path) as records:
        records.retry({"b.pdf"}, {"error"})
        records.append(BROKEN | {"error": "still"})
        killed = path.read_bytes()
        assert records.counts() == Counts(4, 1, 1)
    kept = [FIRST, SECOND, CUT, BROKEN | {"error": "still"}]
    assert lines(path)[1:] == kept
    path.write_bytes(killed)  # as if the writer had been killed
    with opened(path):
        assert lines(path)[1:] == kept
    assert list(path.parent.iterdir()) == [path]


def test_a_document_that_opens_again_has_no_record_that_it_does_not(path):
    write(path, FIRST, BROKEN)
    page = {"file": "b.pdf", "page": 1, "answer": "open"}
    with opened(path) as records:
        records.retry({"b.pdf"}, {"error"})
        records.append(page)
        assert records.counts() == Counts(2, 0, 0)
        assert lines(path)[1:] == [FIRST, page]  # also if the writer is killed now
        assert not records.done("b.pdf", None)


def of_state(record, digest):
    source = {"bytes": 1, "modified": 1.0, "sha256": digest}
    return record | {"source": source}


def test_records_of_one_state_of_a_document_count(path):
    old = [of_state(r, "1") for r in (FIRST, SECOND)]
    write(path, *old, BROKEN)
    with opened(path) as records:
        assert records.source("a.pdf")["sha256"] == "1"
        records.outdate("a.pdf")
        assert records.source("a.pdf") is None
        assert not records.done("a.pdf", 1)
    assert lines(path)[1:] == [*old, BROKEN]
    new = of_state(FIRST, "2")
    with opened(path) as records:
        records.outdate("a.pdf")
        records.append(new)
        assert records.done("a.pdf", 1) and not records.done("a.pdf", 2)
        assert records.counts() == Counts(2, 1, 0)
        killed = path.read_bytes()
    assert lines(path)[1:] == [BROKEN, new]
    path.write_bytes(killed)
    with opened(path) as records:
        assert not records.done("a.pdf", 2)
    assert lines(path)[1:] == [BROKEN, new]


def test_another_root_is_another_folder_unless_it_has_moved(path, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    with PageRecords(path, SETTINGS, str(here)) as records:
        records.append(FIRST)
    with pytest.raises(ValueError, match="documents below .*here, not /elsewhere"):
        PageRecords(path, SETTINGS, "/elsewhere")
    here.rmdir()
    with PageRecords(path, SETTINGS, "/elsewhere") as records:
        assert records.done("a.pdf", 1)
    assert lines(path)[0]["root"] == "/elsewhere"


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
    with PageRecords(path, changed, "/root", {"max_tokens"}) as records:
        assert records.counts() == Counts(2, 0, 1)
        assert lines(path)[0]["settings"] == changed
    write(path, SECOND, max_tokens=99)


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
    try:
        if sys.argv[2] == "append":
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, size + 9))
            records.append({"file": "a", "page": 2, "answer": ""})
        else:
            records.append({"file": "b", "page": 1, "error": ""})
            records.retry({"b"}, {"error"})
            records.append({"file": "b", "page": 1, "error": ""})
            resource.setrlimit(resource.RLIMIT_FSIZE, (9, -1))
            records._tidy()
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize(("way", "suffix"), [("append", ""), ("tidy", ".part")])
def test_a_full_disk_names_the_file(path, way, suffix):
    """A limit on the size of files stands for it."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, way], capture_output=True, text=True
    )
    kinds = [errno.ENOSPC, errno.EFBIG]
    messages = [f"[Errno {n}] {os.strerror(n)}: '{path}{suffix}'" for n in kinds]
    assert done.stdout.strip() in messages, done.stderr
    with PageRecords(path, {"model": "m"}) as records:
        assert records.counts().records == (1 if way == "append" else 2)
