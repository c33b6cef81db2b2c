"""`nemotron-vl find`: pages are found, ranked and asked about."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from nemotron_vl.commands import read_server
from nemotron_vl.documents.finding import Source
from nemotron_vl.main import main
from nemotron_vl.search import asking
from nemotron_vl.search.store import Store
from support.documents import encrypted_pdf, pdf, solid, text_pdf
from support.fake_server import fake_server, image_of
from support.search import SearchServer, find, index, write_folder

OUTSIDE = "The document is not below a folder that was given (--root)."


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
def place(server, folder, tmp_path):
    place = tmp_path / "index"
    assert main(index(server, folder, place, "--root", str(folder))) == 0
    server.asked.clear()
    return place


def lines(capsys):
    return [*map(json.loads, capsys.readouterr().out.splitlines())]


def places(found):
    return [(line["file"], line["page"]) for line in found if "file" in line]


def test_the_nearest_pages_are_listed(server, place, capsys):
    capsys.readouterr()
    assert main(find(server, "blue", place, "--limit", "2")) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "score", "cosine", "page"]
    assert first.split() == ["1", "1.000", "report.pdf", "p.", "3"]
    assert second.split()[0] == "2"
    assert not server.asked and not server.requests


def test_the_pages_are_ranked(server, place, capsys):
    capsys.readouterr()
    options = ("--limit", "2", "--rerank", server.url, "--json")
    assert main(find(server, "red lime", place, *options)) == 0
    first, second = lines(capsys)
    assert places([first]) == [("photos/yellow.png", 1)]
    assert (first["score"], second["score"]) == (2, 1)
    assert len(server.asked) == 6  # all candidates, of equal files one
    main(find(server, "red lime", place, *options, "--candidates", "3"))
    assert len(server.asked) == 9


def test_pages_of_equal_files_are_one(server, folder, place, capsys):
    """They take no place of another page, and are asked about once."""
    for number in range(3):
        shutil.copy(folder / "report.pdf", folder / f"{number}.pdf")
    assert main(index(server, folder, place, "--root", str(folder))) == 0
    capsys.readouterr()
    options = ("--limit", "2", "--answer", server.url, "--json")
    assert main(find(server, "blue", place, *options)) == 0
    first, second, answer = lines(capsys)
    equal = {"report.pdf", *(f"{number}.pdf" for number in range(3))}
    assert {first["file"], *first["copies"]} == equal and first["page"] == 3
    assert (second["file"], second["page"]) != (first["file"], 3)
    assert len(answer["pages"]) == len({*answer["pages"]}) == 2


def test_many_equal_files_hide_no_other_page(server, folder, place, capsys):
    for number in range(40):
        shutil.copy(folder / "photos" / "black.png", folder / f"{number}.png")
    assert main(index(server, folder, place, "--root", str(folder))) == 0
    capsys.readouterr()
    assert main(find(server, "none", place, "--limit", "6", "--json")) == 0
    assert len(found := lines(capsys)) == 6
    assert max(len(line.get("copies", [])) for line in found) == 40


@pytest.mark.parametrize("gone", ["copy.png", "photos/red.png"])
def test_a_copy_is_drawn_in_the_place_of_a_file_that_is_gone(
    server, folder, place, capsys, gone
):
    (folder / gone).unlink()
    options = ("--rerank", server.url, "--json", "--limit", "10")
    capsys.readouterr()
    assert main(find(server, "red", place, *options)) == 0
    found = lines(capsys)
    assert not any("error" in line for line in found)
    assert {"copy.png", "photos/red.png"} - {gone} <= {line["file"] for line in found}


def test_copies_are_not_tried_for_what_is_in_all_of_them(
    server, folder, place, capsys, monkeypatch
):
    (folder / "a.pdf").write_bytes(encrypted_pdf())
    for name in "bc":
        shutil.copy(folder / "a.pdf", folder / f"{name}.pdf")
    source = Source.of(folder / "a.pdf")._asdict()
    store, vector = Store.open(str(place)), [0, 0, 1, 0.1, 0, 0, 0, 0]
    page = {"page": 1, "vector": vector, "source": source}
    store.add([page | {"file": f"{name}.pdf"} for name in "abcc"])
    opened = []
    monkeypatch.setattr(
        asking,
        "pages_again",
        lambda *a, f=asking.pages_again: opened.append(a) or f(*a),
    )
    capsys.readouterr()
    options = ("--answer", server.url, "--json", "--limit", "20")
    assert main(find(server, "blue", place, *options)) == 0
    (line,) = [line for line in lines(capsys) if "encrypted" in line.get("error", "")]
    assert sorted([line["file"], *line["copies"]]) == ["a.pdf", "b.pdf", "c.pdf"]
    assert len(opened) == 1
    for name in "abc":
        (folder / f"{name}.pdf").unlink()
    assert main(find(server, "blue", place, *options)) == 0
    again = [found for found in lines(capsys) if found.get("file") == line["file"]]
    assert [found["copies"] for found in again] == [line["copies"]]


def test_a_page_that_is_too_large_leaves_its_place_to_others(
    server, folder, place, capsys
):
    solid("blue", (60, 60)).save(folder / "small.png")
    assert main(index(server, folder, place, "--root", str(folder))) == 0
    server.models[0]["max_model_len"] = 64 + 1024 + 1000
    capsys.readouterr()
    assert main(find(server, "blue", place, "--answer", server.url, "--json")) == 0
    *found, answer = lines(capsys)
    assert answer["pages"] == ["small.png p. 1"]
    (large,) = (n for n in found if (n["file"], n["page"]) == ("report.pdf", 3))
    assert large["error"].startswith("It is not asked about: its 3330 tokens do not")


def test_an_answer_that_is_cut_is_called_so(server, place, tmp_path, capsys):
    server.answer, server.finish_reason = lambda request: "It is bl", "length"
    out = tmp_path / "html"
    options = ("--answer", server.url, "--html", str(out))
    capsys.readouterr()
    assert main(find(server, "blue", place, *options)) == 0
    said = "It was cut after 1024 tokens."
    assert f"The answer: {said}" in capsys.readouterr().err
    assert said in (out / "records.js").read_text()
    assert main(find(server, "blue", place, *options[:2], "--json")) == 0
    assert lines(capsys)[-1]["cut"] == said


def test_the_best_pages_that_fit_are_asked_about(server, place, capsys):
    server.models[0]["max_model_len"] = 2 * 3330 + 64 + 1024 + 20
    server.answer = lambda request: str(len(request["messages"][0]["content"]) - 1)
    capsys.readouterr()
    options = ("--answer", server.url, "--json")
    assert main(find(server, "lime", place, *options)) == 0
    *found, answer = lines(capsys)
    (request,) = server.requests
    assert request["messages"][0]["content"][-1]["text"] == "lime"
    asked = int(answer["answer"])
    assert asked == 2 and image_of(request).convert("RGB").getpixel((9, 9))[1] == 255
    assert answer["pages"] == [f"{file} p. {n}" for file, n in places(found)[:asked]]
    main(find(server, "lime", place, "--answer", server.url, "--answer-pages", "1"))
    assert capsys.readouterr().out.endswith("\n1\n\nPages: report.pdf p. 2\n")
    main(find(server, "lime", place, *options, "--ask", "Read the text."))
    (part,) = server.requests[-1]["messages"][0]["content"][-1:]
    assert part["text"] == "Read the text."


def test_what_has_changed_is_listed_but_not_asked_about(server, folder, place, capsys):
    (folder / "report.pdf").write_bytes(pdf([solid("red")] * 3))
    capsys.readouterr()
    options = ("--rerank", server.url, "--answer", server.url, "--json")
    assert main(find(server, "blue", place, *options)) == 0
    *found, answer = lines(capsys)
    assert len(found) == 6 and "report.pdf p. 3" not in answer["pages"]
    for line in found[-3:]:
        assert line["file"] == "report.pdf" and line["score"] is None
        assert line["error"] == "The document has changed since it was read."


def test_a_page_that_cannot_be_ranked_comes_last(server, place, capsys):
    server.refuses = lambda request: "documents" in request and len(server.asked) == 1
    capsys.readouterr()
    options = ("--rerank", server.url, "--at-once", "1", "--json")
    assert main(find(server, "blue", place, *options)) == 0
    found = lines(capsys)
    assert [line["score"] for line in found].index(None) == len(found) - 1
    assert found[-1]["error"] == "The server answered 400: The prompt is too long."


def test_a_ranking_without_a_score_has_failed(server, place, capsys):
    server.refuses = lambda request: "documents" in request
    capsys.readouterr()
    options = ("--rerank", server.url, "--answer", server.url, "--json")
    assert main(find(server, "blue", place, *options)) == 1
    printed = capsys.readouterr()
    assert "No page could be ranked; each has its reason." in printed.err
    assert printed.err.count("The prompt is too long.") == 6
    *found, answer = map(json.loads, printed.out.splitlines())
    assert len(found) == 6 and answer["pages"][0] == "report.pdf p. 3"


@pytest.mark.parametrize("text_layer", [True, False])
def test_pages_are_ranked_with_the_text_with_which_they_were_embedded(
    server, folder, tmp_path, text_layer
):
    (folder / "text.pdf").write_bytes(text_pdf("Total: 4711"))
    place = tmp_path / "index"
    options = ["--text-layer"] * text_layer
    assert main(index(server, folder, place, *options)) == 0
    server.asked.clear()
    assert main(find(server, "blue", place, "--rerank", server.url)) == 0
    texts = [
        part["text"]
        for request in server.asked
        for part in request["documents"][0]["content"]
        if part["type"] == "text"
    ]
    assert texts == ["Total: 4711"] * text_layer


def test_documents_that_have_moved_are_found(server, folder, place, capsys):
    moved = folder.rename(folder.with_name("moved"))
    options = ("--answer", server.url, "--json")
    capsys.readouterr()
    assert main(find(server, "blue", place, *options)) == 1
    printed = capsys.readouterr()
    assert "No page can be asked about" in printed.err
    assert len(printed.out.splitlines()) == 6
    assert main(find(server, "blue", place, *options, "--root", str(moved))) == 0
    assert lines(capsys)[-1]["pages"][0] == "report.pdf p. 3"


def test_the_checking_page_shows_the_pages_beside_the_answer(
    server, place, tmp_path, capsys
):
    server.answer = lambda request: "It is blue."
    out = tmp_path / "html"
    options = ("--answer", server.url, "--answer-pages", "1", "--html", str(out))
    assert main(find(server, "blue", place, *options, "--limit", "3")) == 0
    script = (out / "records.js").read_text()
    data = json.loads(json.loads(script.partition("JSON.parse(")[2].rpartition(")")[0]))
    first, *others = data["records"]
    assert data["settings"]["question"] == "blue"
    assert first["answer"] == "It is blue." and first["file"] == "report.pdf"
    assert first["found"].startswith("Page 1 for \u201cblue\u201d; cosine 1.000")
    assert [other["answer"] for other in others] == [None, None]
    for record in data["records"]:
        (image,) = record["images"]
        assert (out / image["image"]).exists()


@pytest.mark.parametrize(
    ("question", "change", "options", "message"),
    [
        (" \n", {}, [], "The question is empty."),
        ("x", {"bias": 0.2}, [], "has pages that another model embedded"),
        ("x", {"dimension": 9}, [], "has pages that another model embedded"),
        ("x", {"apis": {"chat"}}, [], "is no server of a model that embeds pages"),
        ("x", {}, ["--in", "NONE"], "There is no index at"),
        ("x", {}, ["--candidates=9"], "--candidates is less than --limit."),
    ],
)
def test_bad_input_has_its_sentence(
    server, place, tmp_path, capsys, question, change, options, message
):
    vars(server).update(change)
    names = {"URL": server.url, "NONE": str(tmp_path / "none")}
    options = [names.get(option, option) for option in options]
    assert main(find(server, question, place, *options)) == 2
    assert message in capsys.readouterr().err
    assert not Path(names["NONE"]).exists()


@pytest.mark.parametrize("option", ["--rerank", "--answer"])
def test_pages_are_shown_where_they_cannot_be_ranked(server, place, capsys, option):
    server.apis = {"embeddings"}
    capsys.readouterr()
    assert main(find(server, "blue", place, option, server.url, "--limit", "1")) == 1
    printed = capsys.readouterr()
    assert "The server refuses requests: 404: Not Found" in printed.err
    assert printed.out.splitlines()[1].split()[-3:] == ["report.pdf", "p.", "3"]


@pytest.mark.parametrize("option", ["--url", "--rerank", "--answer"])
def test_a_url_without_a_scheme_starts_no_server(server, place, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        main(find(server, "x", place, option, "127.0.0.1:8001"))
    assert "does not begin with http:// or https://" in _err(capsys)


def test_an_index_does_not_name_other_files(server, place, tmp_path, capsys):
    secret = tmp_path / "secret.png"
    solid("blue").save(secret)
    vector = [0, 0, 1, 0.1, 0, 0, 0, 0]
    source = Source.of(secret)._asdict()
    names = [str(secret), f"{place.parent}/folder/../secret.png", f"file://{secret}"]
    rows = [{"file": n, "page": 1, "vector": vector, "source": source} for n in names]
    row = {"file": "copy.png", "page": 2, "vector": vector}
    Store.open(str(place)).add([*rows, row])
    options = ("--answer", server.url, "--html", str(tmp_path / "html"), "--json")
    capsys.readouterr()
    assert main(find(server, "blue", place, *options)) == 0
    *found, answer = lines(capsys)
    errors = {line["file"]: line["error"] for line in found if "error" in line}
    assert errors == {
        **dict.fromkeys(names, OUTSIDE),
        "copy.png": "The index does not say what the document was.",
    }
    assert not set(errors) & {page.rpartition(" p.")[0] for page in answer["pages"]}
    assert "secret" not in (tmp_path / "html" / "records.js").read_text()
    main(find(server, "blue", place, *options[:2], "--json", "--root", str(tmp_path)))
    errors = {line["file"] for line in lines(capsys) if line.get("error") == OUTSIDE}
    assert errors == {*names[1:]}


def test_a_broken_index_has_its_sentence(server, place, capsys):
    for file in (place / "pages.lance" / "_versions").iterdir():
        file.write_bytes(b"")
    assert main(find(server, "blue", place)) == 2
    assert f"{place} cannot be read as an index. It is damaged" in _err(capsys)


def _err(capsys):
    return capsys.readouterr().err


def test_models_are_served_in_turn(
    server, place, checkpoint, embed_checkpoint, rerank_checkpoint, monkeypatch, capsys
):
    """Each ends before the next starts, so they need the memory of one."""
    started = []

    class Process:
        def poll(self):
            return None

    @contextlib.contextmanager
    def serving_process(model, *options, **settings):
        started.append((model, options))
        yield Process(), server.url
        started.append("ended")

    monkeypatch.setattr(read_server, "serving_process", serving_process)
    server.models = [{"id": str(embed_checkpoint)}]
    other = place.with_name("other")
    folder = place.with_name("folder")
    embed = ("--model", str(embed_checkpoint))
    own = "--serve-options=--seed 3"
    assert main(["index", str(folder), "--to", str(other), *embed, own]) == 0
    models = ("--rerank", str(rerank_checkpoint), "--answer", str(checkpoint))
    capsys.readouterr()
    command = ["find", "blue", "--in", str(other), *embed, *models, own, "--json"]
    assert main(command) == 0
    assert lines(capsys)[-1]["pages"]
    served = [one if one == "ended" else Path(one[0]).name for one in started]
    names = ["embed", "embed", "rerank", "random"]
    assert served == [part for name in names for part in (name, "ended")]
    for one in started[::2]:
        assert one[1][0].startswith("--max-model-len=") and one[1][-2:] == (
            "--seed",
            "3",
        )
