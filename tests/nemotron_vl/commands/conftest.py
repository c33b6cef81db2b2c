"""For the tests of `nemotron-vl read`: documents, a file of answers and a schema."""

import json

import pytest

from support.documents import encrypted_pdf, pdf, solid, tiff
from support.read_command import SCHEMA


@pytest.fixture
def folder(tmp_path):
    """A folder of six pages, and two PDFs that cannot be read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "report.pdf").write_bytes(pdf([solid("red")] * 3))
    (folder / "scan.tif").write_bytes(tiff([solid("white")] * 2))
    solid("blue", (40, 30)).save(folder / "photo.png")
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.fixture
def schema(tmp_path):
    file = tmp_path / "invoice.json"
    file.write_text(json.dumps(SCHEMA))
    return str(file)
