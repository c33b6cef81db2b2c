"""Which documents are opened again: those that were read, where they were read."""

import pytest
from PIL import Image

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents.finding import Source
from nemotron_vl.documents.pages import Drawing
from nemotron_vl.documents.pages_again import is_away, pages_again
from nemotron_vl.documents.process import PageProcess


@pytest.fixture
def again(tmp_path):
    """Draws the first page of a document of a folder, as it is now."""
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (tmp_path / "outside.png").write_bytes((folder / "a.png").read_bytes())
    source = Source.of(folder / "a.png")._asdict()
    with PageProcess(Drawing(Tiler.from_model(None))) as process:

        def draw(name, root=str(folder), **changes):
            wanted = [(name, [1], source | changes)]
            (page,) = pages_again(process, wanted, root)
            assert (page.file, page.number) == (name, 1)
            return page

        yield draw


def test_a_document_is_drawn_from_its_folder(again, tmp_path):
    assert again("a.png").error is None
    assert again(f"{tmp_path}/outside.png", None).error is None
    assert again("a.png", sha256="0").error.endswith("has changed since it was read.")
    assert is_away(again("gone.png")) and not is_away(again("a.png"))


@pytest.mark.parametrize("root", ["memory://folder", "memory://folder/"])
@pytest.mark.parametrize(
    "name", ["../outside.png", "b/../../x.png", "%2e%2e/x.png", "x::y.png"]
)
def test_names_do_not_lead_out_of_a_remote_folder(again, root, name):
    assert again(name, root).error == "The document is not in the folder that was read."


@pytest.mark.parametrize("name", ["../outside.png", "b/../../outside.png", "link.png"])
def test_names_do_not_lead_out_of_a_folder(again, tmp_path, name):
    (tmp_path / "folder" / "link.png").symlink_to(tmp_path / "outside.png")
    assert again(name).error == "The document is not in the folder that was read."


def test_names_without_a_folder_and_of_no_file(again):
    assert "do not say in which folder it was (--root)" in again("a.png", None).error
    assert again("a\0.png").error == "The document is not on this machine."
