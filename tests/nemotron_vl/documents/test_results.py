"""Records are read in the order of documents and pages, and what is broken is named."""

import json

import pytest

from nemotron_vl.documents.results import read_records
from support.export_command import write


def places(results):
    return [(record.file, record.page) for record in results.records]


def test_documents_come_by_name_and_pages_by_number(tmp_path):
    names = ["/b/10.pdf", "/b/9.pdf", "/b/9a.pdf", "/a b/1.pdf", "/b/009.pdf"]
    records = [{"file": name, "page": 1} for name in names]
    records += [{"file": "/b/9.pdf", "page": page} for page in (None, 10, 2)]
    found = places(read_records(write(tmp_path / "r.jsonl", *records)))
    assert found == [
        ("/a b/1.pdf", 1),
        ("/b/009.pdf", 1),
        *[("/b/9.pdf", page) for page in (1, 2, 10, None)],
        ("/b/9a.pdf", 1),
        ("/b/10.pdf", 1),
    ]


def test_a_head_says_what_was_asked(tmp_path):
    file = write(tmp_path / "r.jsonl", {"file": "a", "page": 1}, root="/r", per="page")
    results = read_records(file)
    assert (results.root, results.settings) == ("/r", {"per": "page"})
    assert results.schema is None


def test_half_a_last_line_is_left_out_and_a_whole_one_is_not(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"file": "a", "page": 1}\n{"file": "b", "page": 1}')
    assert len(read_records(file).records) == 2
    file.write_text('{"file": "a", "page": 1}\n{"file": "b", "pa')
    assert len(read_records(file).records) == 1


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "r.jsonl, line 2 is no record"),
        ("[1]", "r.jsonl, line 2 is no record"),
        ("[" * 100_000, "r.jsonl, line 2 is no record"),
        ('{"file": "a", "page": 1, "answer": NaN}', "line 2 is no record"),
        ('{"file": "a"}', "line 2: there is no 'page'"),
        ('{"file": 3, "page": 1}', "line 2: 'file' is 3"),
        ('{"file": "a", "page": 0}', "line 2: a page has a number from 1"),
        ('{"file": "a", "page": true}', "line 2: a page has a number from 1"),
        ('{"file": "a", "page": 1, "turned": 45}', "line 2: 'turned' is 45"),
        ('{"file": "a", "page": 1, "pages": ["x"]}', "a page has a number from 1"),
        ('{"file": "a", "page": 1, "text_layer": {"cer": "x"}}', "has no numbers"),
        ('{"settings": {}, "root": null}', "a head is the first line"),
    ],
)
def test_what_is_broken_is_named(tmp_path, line, cause):
    file = tmp_path / "r.jsonl"
    file.write_text(f'{{"file": "z", "page": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=cause):
        read_records(file)


@pytest.mark.parametrize("head", [{"settings": 1}, {"settings": {"schema": []}}])
def test_a_broken_head_is_named(tmp_path, head):
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(head) + '\n{"file": "z", "page": 1}\n')
    with pytest.raises(ValueError, match="line 1: the "):
        read_records(file)


def test_part_files_of_a_folder_are_one_and_later_records_count(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "1.json").write_text('{"file": "a", "page": 1, "answer": "old"}\n')
    later = '{"file": "a", "page": 1, "answer": "new", "error": null}\n'
    (tmp_path / "below" / "2.json").write_text(later)
    (tmp_path / "notes.txt").write_text("no record")
    results = read_records(tmp_path)
    assert [record.answer for record in results.records] == ["new"]
    assert results.settings == {}


def test_no_records_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no records"):
        read_records(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "missing")


def test_what_was_cut_is_known_also_from_its_finish_reason(tmp_path):
    record = {"file": "a", "page": 1, "answer": "x", "finish_reason": "length"}
    (found,) = read_records(write(tmp_path / "r.jsonl", record)).records
    assert found.cut == "It was cut."


@pytest.mark.parametrize(
    ("answer", "empty"),
    [
        ("", True),
        (" \n", True),
        ({"total": None, "items": []}, True),
        ({"total": 0}, False),
        (0, False),
        ("0", False),
    ],
)
def test_an_answer_that_says_nothing_is_empty(tmp_path, answer, empty):
    record = {"file": "a", "page": 1, "answer": answer}
    (found,) = read_records(write(tmp_path / "r.jsonl", record)).records
    assert found.empty is empty
