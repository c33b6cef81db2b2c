"""Documents that are gone leave an index; those that are only away stay."""

import pytest

from nemotron_vl.documents.finding import find_documents
from nemotron_vl.search.leaving import gone


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    return tmp_path


def left(
    folder, *paths, known=("a/1.png", "a/2.png", "b/3.png"), root=True, empty=False
):
    paths = [str(folder / path) for path in paths]
    root = str(folder) if root else None
    names = [*known] if root else [str(folder / name) for name in known]
    found = find_documents(paths, root)
    names = gone(names, paths, found, root, empty)
    return [name.removeprefix(f"{folder}/") for name in names]


@pytest.mark.parametrize("root", [True, False])
def test_a_file_that_was_removed_is_gone(folder, root):
    assert left(folder, "", root=root) == []
    (folder / "a" / "1.png").unlink()
    assert left(folder, "", root=root) == ["a/1.png"]
    assert left(folder, "b", root=root) == []
    assert left(folder, "a", "b", root=root) == ["a/1.png"]


def test_what_is_in_no_given_folder_stays(folder):
    known = ("a/1.png", "ab/4.png", "c/5.png", "b/gone.png")
    assert left(folder, "a", "b/3.png", known=known) == []


def test_a_folder_without_documents_is_away(folder):
    (folder / "b" / "3.png").unlink()
    assert left(folder, "b") == []
    assert left(folder, "a", "b") == []
    assert left(folder, "") == []  # a drive that is not mounted, or its folder is gone
    assert left(folder, "", empty=True) == ["b/3.png"]


def test_a_folder_that_cannot_be_listed_is_away(folder, monkeypatch):
    (folder / "a" / "1.png").unlink()
    found = find_documents([folder / "b", folder / "a"], str(folder))
    unlisted = found.documents[0]._replace(name="a")
    found = found._replace(documents=[*found.documents[:1], unlisted])
    assert gone(["a/1.png", "b/9.png"], [str(folder)], found, str(folder)) == [
        "b/9.png"
    ]


def test_remote_folders(folder):
    paths = [f"file://{folder}"]
    found = find_documents(paths)
    known = [f"file://{folder}/a/1.png", f"file://{folder}/a/9.png", "/a/1.png"]
    assert gone(known, paths, found, None) == [f"file://{folder}/a/9.png"]
