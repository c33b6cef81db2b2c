"""Which documents are found, their names, and whether they have changed."""

import os
from pathlib import Path

import pytest

from nemotron_vl.documents.equal import equal_files
from nemotron_vl.documents.finding import (
    Source,
    find_documents,
    local_file,
    opened_locally,
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "b.d").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("b.pdf", "b.d/a.HEIC", "a.docx", "notes", ".x.pdf", ".hidden/c.pdf"):
        (folder / name).write_bytes(b"%PDF-" + name.encode())
    return folder


def names(found) -> list[str]:
    return [document.name for document in found.documents]


def test_documents_of_folders(folder):
    found = find_documents([folder, folder / "b.pdf", folder / "notes"])
    expected = ["b.d/a.HEIC", "b.pdf", "notes"]
    assert names(found) == [str(folder / name) for name in expected]
    assert found.left_out == {".docx": 1, "": 1}


def test_names_below_a_root(folder, tmp_path):
    assert names(find_documents([folder], str(tmp_path))) == [
        "folder/b.d/a.HEIC",
        "folder/b.pdf",
    ]
    with pytest.raises(ValueError, match=r"b\.pdf is not below the root .*b\.d\."):
        find_documents([folder], str(folder / "b.d"))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_documents([folder / "nowhere"])


def test_a_name_that_is_not_utf_8(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    (name,) = names(find_documents([tmp_path]))
    assert name.endswith(r"/\xff.png") and name.encode()


def test_changes_are_seen(folder):
    file = folder / "b.pdf"
    (before,) = find_documents([file]).documents
    source = Source.of(file)._asdict()
    assert not before.has_changed(source)
    os.utime(file, (1, 1))  # the content is what counts
    (touched,) = find_documents([file]).documents
    assert not touched.has_changed(source)
    file.write_bytes(b"%PDF-B.pdf")
    os.utime(file, (2, 2))
    (changed,) = find_documents([file]).documents
    assert changed.bytes == before.bytes and changed.has_changed(source)
    assert before.examined_again() == changed
    file.unlink()  # as on a drive that is not there
    assert not before._replace(modified=3.0).has_changed(source)
    assert not before.examined_again().has_changed(source)


def test_equal_files(tmp_path):
    for name, content in (
        ("a", b"1"),
        ("b", b"2"),
        ("c", b"1"),
        ("d", b""),
        ("e", b""),
    ):
        (tmp_path / f"{name}.pdf").write_bytes(content)
    found = find_documents([tmp_path], str(tmp_path)).documents
    others, copies = equal_files(found)
    assert [document.name for document in others] == [
        "a.pdf",
        "b.pdf",
        "d.pdf",
        "e.pdf",
    ]
    assert {k: [d.name for d in v] for k, v in copies.items()} == {"a.pdf": ["c.pdf"]}


def test_files_that_are_known_are_not_read_again(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.pdf").write_text(name.replace("c", "a"))
    found = find_documents([tmp_path], str(tmp_path)).documents
    known = {document.name: Source.of(Path(document.place)) for document in found}
    expected = equal_files(found)
    read = []
    monkeypatch.setattr(
        Source, "of", lambda path, of=Source.of: read.append(path.name) or of(path)
    )
    (tmp_path / "b.pdf").write_text("a")
    os.utime(tmp_path / "b.pdf", (1, 1))
    changed = find_documents([tmp_path], str(tmp_path)).documents
    states = {name: source._asdict() for name, source in known.items()}
    assert equal_files(found, states.get) == expected and not read
    _, copies = equal_files(changed, states.get)
    assert [copy.name for copy in copies["a.pdf"]] == ["b.pdf", "c.pdf"]
    assert read == ["b.pdf"]


def test_documents_of_another_file_system(memory):
    for name in ("/box/2/b.pdf", "/box/a.png", "/box/.x.png", "/box/n.txt", "/c.pdf"):
        memory.pipe(name, name.encode())
    found = find_documents(["memory://box", "memory://c.pdf"])
    expected = [f"memory:///{name}" for name in ("box/2/b.pdf", "box/a.png", "c.pdf")]
    assert names(found) == expected
    assert found.left_out == {".txt": 1}
    below = find_documents(["memory://box"], "memory:///box/")
    assert names(below) == ["2/b.pdf", "a.png"]
    document = found.documents[1]
    with opened_locally(document) as file:
        assert file.read_bytes() == b"/box/a.png"
        source = Source.of(file, document.modified)._asdict()
    assert not file.exists() and not document.has_changed(source)
    memory.pipe("/box/a.png", b"/box/b.png")
    (changed,) = find_documents(["memory:///box/a.png"]).documents
    assert changed.has_changed(source)
    memory.rm("/box/a.png")
    assert not changed._replace(modified="later").has_changed(source)
    with pytest.raises(OSError, match="cannot be fetched"), opened_locally(document):
        pass
    with pytest.raises(FileNotFoundError, match="memory://none does not exist"):
        find_documents(["memory://none"])


def test_a_remote_folder_that_cannot_be_listed_has_its_sentence(memory, monkeypatch):
    memory.pipe("/box/a.png", b"a")
    memory.pipe("/box/2/b.png", b"b")
    ls = type(memory).ls

    def listed(self, path, *more, **options):
        if path.endswith("/2"):
            raise PermissionError("no")
        return ls(self, path, *more, **options)

    monkeypatch.setattr(type(memory), "ls", listed)
    with pytest.raises(OSError, match="memory://box cannot be listed: no"):
        find_documents(["memory://box"])


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match="no-such-system://x needs a package|Protocol"):
        find_documents(["no-such-system://x"])


def test_names_are_told_apart(tmp_path):
    for name in (b"a\xff.pdf", b"a\\xff.pdf"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    with pytest.raises(ValueError, match=r"Two documents are called .*a\\xff.pdf"):
        find_documents([tmp_path])
    (tmp_path / r"a\xff.pdf").unlink()
    (name,) = names(find_documents([tmp_path]))
    assert local_file(name).read_bytes() == b"a\xff.pdf"
