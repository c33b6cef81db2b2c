"""`nemotron-vl index`: each page is embedded once, whatever happens meanwhile."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nemotron_vl.commands import arguments
from nemotron_vl.documents import job
from nemotron_vl.documents.finding import Source
from nemotron_vl.main import main
from nemotron_vl.search.index import Index
from nemotron_vl.search.store import Store
from support.documents import blank_pdf, encrypted_pdf, pdf, solid, text_pdf
from support.fake_server import fake_server
from support.search import COLOURS, SearchServer, find, index, write_folder

ROOT = Path(__file__).parents[3]
ALL = [
    *(f"{file}.png#1" for file in ("copy", "photos/black", "photos/red")),
    *("photos/yellow.png#1", *(f"report.pdf#{number}" for number in (1, 2, 3))),
]


@pytest.fixture
def server():
    with fake_server(SearchServer) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    write_folder(folder)
    return folder


@pytest.fixture
def place(tmp_path):
    return tmp_path / "index"


def pages(place, folder):
    """Names and numbers of the pages, and `None` for a document."""
    found = Store.open(str(place)).states()
    return sorted(
        f"{r['file'].removeprefix(f'{folder}/')}#{r['page']}"
        + (" " + r["error"] if "error" in r else "")
        for r in found
    )


def test_each_page_is_embedded_once(server, folder, place, capsys):
    assert main(index(server, folder, place)) == 0
    assert pages(place, folder) == ALL
    assert len(server.asked) == 6  # of two equal files one
    assert capsys.readouterr().out == f"{place}: pages: 7, new: 7, errors: 0\n"
    assert main(index(server, folder, place)) == 0
    assert len(server.asked) == 6
    assert capsys.readouterr().out == f"{place}: pages: 7, new: 0, errors: 0\n"


def test_documents_whose_pages_are_all_there_are_not_opened(
    server, folder, place, monkeypatch
):
    main(index(server, folder, place))
    monkeypatch.setattr(Source, "of", None)
    monkeypatch.setattr(job, "opened_locally", None)
    assert main(index(server, folder, place)) == 0
    assert len(server.asked) == 6


def test_documents_elsewhere_are_fetched_once(server, place, memory, monkeypatch):
    frames = [solid(colour) for colour in COLOURS]
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=frames[1:])
    memory.pipe({"/box/a.tif": file.getvalue(), "/box/b.pdf": pdf(frames)})
    opened = []
    monkeypatch.setattr(
        memory,
        "open",
        lambda path, *a, open=memory.open, **k: (
            opened.append(path) or open(path, *a, **k)
        ),
    )
    assert main(index(server, "memory://box", place)) == 0
    fetched = len(opened)
    assert fetched and len(Store.open(str(place))) == 6
    assert main(index(server, "memory://box", place)) == 0
    assert len(opened) == fetched


def test_pages_that_two_commands_added_stay_once(server, folder, place, tmp_path):
    """Also those of a folder that is not looked through now."""
    main(index(server, folder, place))
    store = Store.open(str(place))
    store.add([*store.records([f"{folder}/report.pdf"])])
    assert len(store) == 10
    other = tmp_path / "other"
    other.mkdir()
    solid("lime").save(other / "new.png")
    assert main(index(server, other, place)) == 0
    assert len(Store.open(str(place))) == 8
    (other / "new.png").unlink()
    assert main(index(server, folder, place)) == 0
    assert pages(place, folder)[-7:] == ALL and len(server.asked) == 7


def test_changes_of_the_folder_are_followed(server, folder, place, capsys):
    main(index(server, folder, place))
    server.asked.clear()
    (folder / "report.pdf").write_bytes(pdf([solid("black")] * 2))
    (folder / "photos" / "red.png").unlink()
    solid("lime").save(folder / "new.png")
    assert main(index(server, folder, place)) == 0
    kept = {*ALL} - {"photos/red.png#1", "report.pdf#3"}
    assert pages(place, folder) == sorted({*kept, "new.png#1"})
    assert len(server.asked) == 3
    printed = capsys.readouterr()
    assert "report.pdf: it has changed and is read again" in printed.err
    assert printed.out.endswith(
        f"{place}: pages: 6, new: 3, errors: 0, documents that are gone: 1\n"
    )


def test_a_folder_that_is_away_changes_nothing(server, folder, place, capsys):
    main(index(server, folder, place))
    folder.rename(folder.with_name("elsewhere"))
    assert main(index(server, folder, place)) == 2
    assert "does not exist" in capsys.readouterr().err
    folder.mkdir()
    assert main(index(server, folder, place)) == 2
    assert "The folders hold no PDFs and no images." in capsys.readouterr().err
    assert pages(place, folder) == ALL
    assert main(index(server, folder, place, "--remove-gone")) == 0
    assert pages(place, folder) == []


CODE = """
import sys
from nemotron_vl.search import index
index.BATCH = 2
from nemotron_vl.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_goes_on(server, tmp_path, place):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        colours = [solid(colour, (60, 80 + number)) for colour in COLOURS]
        (folder / f"{number}.pdf").write_bytes(pdf(colours))
    command = index(server, folder, place, "--at-once", "2")

    def killing(number):
        if number == 6:
            os.kill(process.pid, signal.SIGKILL)

    server.at_page = killing
    statuses = []
    while 0 not in statuses:
        process = subprocess.Popen([sys.executable, "-c", CODE, *command])
        statuses.append(process.wait(120))
    assert statuses == [-signal.SIGKILL, 0]
    assert pages(place, folder) == [f"{n}.pdf#{p}" for n in range(3) for p in (1, 2, 3)]
    assert len(server.asked) < 6 + 9  # what was written is not done again


def test_a_run_that_ends_between_removing_and_adding_goes_on(
    server, folder, place, monkeypatch
):
    main(index(server, folder, place))
    (folder / "report.pdf").write_bytes(pdf([solid("black")] * 2))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda self, rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(index(server, folder, place))
    assert main(index(server, folder, place)) == 0
    assert pages(place, folder) == ALL[:-1]


def test_what_cannot_be_embedded_is_said(server, folder, place, capsys):
    (folder / "locked.pdf").write_bytes(encrypted_pdf())
    server.refuses = lambda request: len(str(request)) > 20_000  # a page too large
    server.failures = [500]  # is tried again
    assert main(index(server, folder, place)) == 1
    printed = capsys.readouterr()
    locked = "locked.pdf#None The PDF is encrypted and needs a password."
    found = pages(place, folder)
    assert [p for p in found if " " in p and "too long" not in p] == [locked]
    large = "The server answered 400: The prompt is too long."
    assert large in printed.err
    errors = sum(" " in page for page in found)
    assert errors > 1 and f"errors: {errors}" in printed.out
    server.refuses = lambda request: False
    assert main(index(server, folder, place)) == 1  # they are left
    assert pages(place, folder) == found
    assert main(index(server, folder, place, "--retry-errors")) == 1
    assert pages(place, folder) == sorted([*ALL, locked])


def test_a_document_that_changed_while_it_was_read_is_read_again(server, folder, place):
    def change(number):
        if number == 1:
            (folder / "report.pdf").write_bytes(pdf([solid("black")] * 4))

    server.at_page = change
    assert main(index(server, folder / "report.pdf", place)) == 1
    server.at_page = lambda number: None
    assert main(index(server, folder / "report.pdf", place)) == 0
    assert pages(place, folder) == [f"report.pdf#{number}" for number in (1, 2, 3, 4)]


def test_the_text_of_a_pdf_is_sent_if_asked(server, tmp_path, place):
    file = tmp_path / "a.pdf"
    file.write_bytes(text_pdf("Total 12.50"))
    main(index(server, file, place))
    main(index(server, file, tmp_path / "other", "--text-layer"))
    without, beside = (r["messages"][0]["content"] for r in server.asked)
    assert len(without) == 1
    assert beside[1]["text"].strip() == "Total 12.50"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": 0.2}, "has pages that another model embedded. Ask a server of fake"),
        ({"dimension": 9}, "has pages that another model embedded."),
        ({"bias_of_pages": 0.2}, "that the model embedded with other options, such as"),
        ({"apis": {"chat"}}, "is no server of a model that embeds pages."),
    ],
)
def test_another_server_is_refused(server, folder, place, capsys, change, message):
    main(index(server, folder, place))
    solid("lime").save(folder / "new.png")
    vars(server).update(change)
    assert main(index(server, folder, place)) == 2
    assert message in capsys.readouterr().err
    assert pages(place, folder) == ALL


def test_other_settings_are_refused(server, folder, place, capsys):
    main(index(server, folder, place, "--root", str(folder)))
    main(index(server, folder, place, "--root", str(folder), "--max-tiles", "3"))
    assert "has pages with other settings: max tiles '6', not '3'" in _err(capsys)
    main(index(server, folder, place, "--root", str(folder.parent)))
    assert f"has pages of documents below {folder}, not " in _err(capsys)
    folder = folder.rename(folder.with_name("moved"))
    assert main(index(server, folder, place, "--root", str(folder))) == 0
    assert len(server.asked) == 6
    options = ("--rerank", server.url, "--json")
    capsys.readouterr()
    assert main(find(server, "blue", place, *options)) == 0
    assert "error" not in capsys.readouterr().out


def test_a_model_of_another_name_is_the_same(server, folder, place):
    main(index(server, folder, place))
    solid("lime").save(folder / "new.png")
    server.models = [{"id": "other"}]
    assert main(index(server, folder, place)) == 0
    assert main(find(server, "blue", place)) == 0


def test_documents_leave_after_the_others_are_embedded(server, folder, place, capsys):
    main(index(server, folder, place))
    (folder / "photos" / "red.png").unlink()
    solid("lime").save(folder / "new.png")
    server.apis = {"chat"}
    assert main(index(server, folder, place)) == 2
    assert pages(place, folder) == ALL
    server.apis = {"embeddings"}
    shutil.rmtree(folder / "photos")
    capsys.readouterr()
    assert main(index(server, folder, place)) == 0
    assert "kept (--remove-gone): 3" in capsys.readouterr().out
    assert main(index(server, folder, place, "--remove-gone")) == 0
    assert "documents that are gone: 3" in capsys.readouterr().out


def _err(capsys):
    return capsys.readouterr().err


def test_two_commands_do_not_write_to_one_index(server, folder, place, capsys):
    with Index(str(place), {}):
        assert main(index(server, folder, place)) == 2
    assert "Another process writes to" in _err(capsys)
    assert not server.asked


def test_no_server_is_named(folder, place, capsys):
    assert main(["index", str(folder), "--to", str(place)]) == 2
    assert "Give --url of a server, or --model to start one." in _err(capsys)
    assert not place.exists()


def test_a_blank_page_is_embedded(server, tmp_path, place):
    (tmp_path / "a.pdf").write_bytes(blank_pdf(100, 100))
    assert main(index(server, tmp_path / "a.pdf", place)) == 0
    assert len(pages(place, tmp_path)) == 1


def test_a_missing_package_is_named(server, folder, place, capsys, monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda name: name != "lancedb")
    assert main(index(server, folder, place)) == 2
    message = "`nemotron-vl index` needs more packages: pip install lancedb (extras"
    assert message in _err(capsys)
    assert main(["find", "x", "--in", str(place), "--url", server.url]) == 2
    assert message.replace("index", "find") in _err(capsys)


def test_the_extra_is_in_the_locks():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["optional-dependencies"]["search"] == ["lancedb>=0.40"]
    for lock in (ROOT / "requirements").rglob("*.txt"):
        if "openai==" in (text := lock.read_text()) and "pytest==" in text:
            assert "\nlancedb==0.40" in text, lock
