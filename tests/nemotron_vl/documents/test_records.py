"""Records of pages survive what happens to their writer."""

import json

import pytest

from nemotron_vl.documents.records import PageRecords


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def write(path, *records, question="q"):
    with PageRecords(path, question) as opened:
        for record in records:
            opened.append(record)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


FIRST = {"file": "a.pdf", "page": 1, "answer": "eins\nzwei – drei"}
SECOND = {"file": "a.pdf", "page": 2, "answer": {"total": 3}}
BROKEN = {"file": "b.pdf", "page": None, "error": "encrypted"}


def test_records_are_found_again(path):
    write(path, FIRST, BROKEN)
    write(path, SECOND)
    assert lines(path) == [r | {"question": "q"} for r in (FIRST, BROKEN, SECOND)]
    with PageRecords(path, "q") as records:
        assert len(records) == 3
        assert records.done("a.pdf", 1) and records.done("a.pdf", 2)
        assert records.done("b.pdf", None)
        assert not records.done("a.pdf", 3) and not records.done("b.pdf", 1)


def test_a_record_that_was_cut_anywhere_is_written_again(path):
    write(path, FIRST, SECOND)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        with PageRecords(path, "q") as records:
            assert records.done("a.pdf", 1) and not records.done("a.pdf", 2)
            records.append(SECOND)
        assert path.read_bytes() == whole


def test_a_page_is_not_written_twice(path):
    write(path, FIRST)
    with pytest.raises(ValueError, match="has page 1 of a.pdf already"):
        write(path, FIRST)
    assert len(lines(path)) == 1


def test_errors_are_tried_again_on_demand(path):
    write(path, FIRST, BROKEN, SECOND)
    with PageRecords(path, "q", retry_errors={"b.pdf"}) as records:
        assert not records.done("b.pdf", None)
        assert records.done("a.pdf", 1) and records.done("a.pdf", 2)
        with pytest.raises(ValueError, match="Another process writes"):
            PageRecords(path, "q")
        records.append(BROKEN | {"error": "still"})
    assert [r.get("error") for r in lines(path)] == [None, None, "still"]
    assert list(path.parent.iterdir()) == [path]


def test_two_processes_do_not_write_to_one_file(path):
    refused = pytest.raises(ValueError, match="Another process writes to .*answers")
    with PageRecords(path, "q"), refused:
        PageRecords(path, "q")
    write(path, FIRST)


def test_answers_to_another_question_are_kept_apart(path):
    write(path, FIRST)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="answers to another question or schema"):
        PageRecords(path, "p")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"%PDF-1.4", b"a report\nof two lines\n", b'{"total": 3}\n', b"[]\n", b"\0\n\0"],
)
@pytest.mark.parametrize("retry_errors", [(), {"b.pdf"}])
def test_another_file_is_left_alone(path, content, retry_errors):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is no file of answers: line 1\."):
        PageRecords(path, "q", retry_errors)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
