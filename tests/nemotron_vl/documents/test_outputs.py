"""An export replaces earlier exports and nothing else, whatever documents are named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron_vl.documents.outputs import (
    MARKER,
    OutputFolder,
    replaced_file,
    safe_name,
)


def files(folder):
    found = (f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    return {name for name in found if name != MARKER}


def test_an_earlier_export_is_replaced_and_other_files_stay(tmp_path):
    out = tmp_path / "out"
    with OutputFolder(out) as folder:
        folder.write("a/b/old.md", b"1")
        folder.write("both.md", b"1")
    (out / "corrections.jsonl").write_text("mine")
    with OutputFolder(out) as folder:
        folder.write("both.md", b"2")
    assert files(out) == {"both.md", "corrections.jsonl"}
    assert not (out / "a").exists()
    assert (out / "both.md").read_bytes() == b"2"


def test_an_export_that_was_killed_is_recognised(tmp_path):
    OutputFolder(tmp_path).write("page.md", b"1")
    with OutputFolder(tmp_path) as folder:
        folder.write("page.md", b"2")
    assert (tmp_path / "page.md").read_bytes() == b"2"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.md").write_text("mine")
    with pytest.raises(ValueError, match="is not empty, and no earlier export"):
        OutputFolder(tmp_path)
    assert files(tmp_path) == {"thesis.md"}


def test_a_file_that_no_export_wrote_is_not_overwritten(tmp_path):
    with OutputFolder(tmp_path):
        pass
    (tmp_path / "a.md").write_text("mine")
    (tmp_path / "link.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").symlink_to(tmp_path.parent)
    with OutputFolder(tmp_path) as folder:
        for name in ("a.md", "link.md", "folder/b.md", "../b.md", "/tmp/b.md", ""):
            with pytest.raises(ValueError, match="is not from an earlier export"):
                folder.write(name, b"")
    assert (tmp_path / "a.md").read_text() == "mine"
    assert not (tmp_path.parent / "b.md").exists()


def test_a_planted_list_removes_nothing_outside(tmp_path):
    (tmp_path / "mine").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    (out / "up").symlink_to(tmp_path)
    (out / MARKER).write_text(f'"../mine"\n"up/mine"\n"{tmp_path}/mine"\n"\\u0000"\n')
    with OutputFolder(out):
        pass
    assert (tmp_path / "mine").exists()
    (out / MARKER).write_text("{")
    with pytest.raises(ValueError, match="is no list of an export's files"):
        OutputFolder(out)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../x.pdf", "x.pdf.md"),
        ("/etc/./x.pdf", "etc/x.pdf.md"),
        ("a\0b\n.pdf", "a_b_.pdf.md"),
        ("s3://bucket/x.pdf", "s3_/bucket/x.pdf.md"),
        (".ssh/-rf", "_ssh/_rf.md"),
        ("a.md/b", "a.md_/b.md"),
        ("..", "document.md"),
        ("caf\u00e9/\u202egpj.pdf", "caf\u00e9/_gpj.pdf.md"),
        ("\udcff.pdf", "_.pdf.md"),
    ],
)
def test_names_stay_in_the_folder(name, expected):
    assert safe_name(name, ".md", set()) == expected


def test_equal_names_get_numbers(tmp_path):
    taken = set()
    names = [safe_name(name, ".md", taken) for name in ("a?", "a*", "A_")]
    assert names == ["a_.md", "a_ (2).md", "A_ (3).md"]


@settings(deadline=None)
@given(st.text())
def test_any_name_can_be_written(tmp_path_factory, name):
    with OutputFolder(tmp_path_factory.mktemp("out")) as folder:
        taken = set()
        for text in (name, name * 300, "x/" * 500 + name):
            folder.write(safe_name(text, ".md", taken), b"")


def test_only_an_earlier_file_is_replaced(tmp_path):
    file = tmp_path / "table.csv"
    for content in (b"1", b"2"):
        with replaced_file(file, b"document") as opened:
            opened.write(b"document" + content)
    assert file.read_bytes() == b"document2"
    file.write_bytes(b"my own table")
    with (
        pytest.raises(ValueError, match="table.csv is no earlier export"),
        replaced_file(file, b"document"),
    ):
        pass
    assert file.read_bytes() == b"my own table"


def test_the_end_of_an_earlier_file_may_be_looked_at(tmp_path):
    file = tmp_path / "a" / "b" / "table"
    for far, kept in ((0, True), ((1 << 20) - 4, True), (1 << 20, False)):
        with replaced_file(file, b"PAR1", b"ours") as opened:
            opened.write(b"PAR1 ours" + bytes(far))
        if kept:
            with replaced_file(file, b"PAR1", b"ours") as opened:
                opened.write(b"PAR1 ours")
            assert file.read_bytes() == b"PAR1 ours"
    with (
        pytest.raises(ValueError, match="table is no earlier export"),
        replaced_file(file, b"PAR1", b"ours"),
    ):
        pass


def test_an_interrupted_file_leaves_the_earlier_one(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes(b"document")
    with (
        pytest.raises(KeyboardInterrupt),
        replaced_file(file, b"document") as opened,
    ):
        opened.write(b"document half")
        raise KeyboardInterrupt
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == b"document"
