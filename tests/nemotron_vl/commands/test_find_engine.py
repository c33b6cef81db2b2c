"""`nemotron-vl index` and `find` with servers of the embedded checkpoints."""

import contextlib
import json

import pytest

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.main import main
from nemotron_vl.server import serving
from support.documents import pdf, text_pdf
from support.servers import forked_servers

TEXTS = {("a.pdf", 1): "4711-08", ("a.pdf", 2): "640-27", ("b.png", 1): "317-45"}
OPTIONS = ["--dtype=float32", "--enforce-eager", "--max-num-seqs=4"]
OPTIONS += ["--max-model-len=2048"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    first, second, third = map(draw_text, TEXTS.values())
    (folder / "a.pdf").write_bytes(pdf([first, second]))
    third.save(folder / "b.png")
    return folder


@pytest.fixture(scope="module")
def urls(tiny_embed, tiny_rerank, tmp_path_factory):
    log = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:
        stack.enter_context(forked_servers())
        yield [
            stack.enter_context(serving(model, *OPTIONS, log=log / f"{number}.txt"))
            for number, model in enumerate((tiny_embed, tiny_rerank))
        ]


@pytest.fixture(scope="module")
def place(folder, urls, tmp_path_factory):
    place = tmp_path_factory.mktemp("index") / "index"
    command = ["index", str(folder), "--to", str(place), "--url", urls[0]]
    assert main([*command, "--root", str(folder)]) == 0
    return place


def find(question, place, urls, capsys, *options):
    command = ["find", question, "--in", str(place), "--url", urls[0], "--json"]
    capsys.readouterr()
    status = main([*command, *options])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return [*map(json.loads, printed.out.splitlines())], printed.err


@pytest.mark.parametrize("question", TEXTS.values())
def test_pages_are_found_and_ranked(place, urls, capsys, question):
    found, _ = find(question, place, urls, capsys)
    assert {(line["file"], line["page"]) for line in found} == {*TEXTS}
    cosines = [line["cosine"] for line in found]
    assert cosines == sorted(cosines, reverse=True) and len({*cosines}) == 3
    ranked, errors = find(question, place, urls, capsys, "--rerank", urls[1])
    scores = [line["score"] for line in ranked]
    assert not errors and scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    for best in (found[0], ranked[0]):
        assert TEXTS[best["file"], best["page"]] == question
    assert scores[0] > 0.5 > scores[1]


def test_a_server_that_does_not_embed_is_named(place, urls, capsys):
    assert main(["find", "x", "--in", str(place), "--url", urls[1]]) == 2
    assert "is no server of a model that embeds pages" in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(place, urls, capsys):
    command = ["find", "x", "--in", str(place), "--url", urls[0], "--answer", urls[0]]
    assert main(command) == 1
    assert "The server refuses requests: 404" in capsys.readouterr().err


def test_a_question_that_is_too_long(place, urls, capsys):
    command = ["find", "4711 " * 2000, "--in", str(place), "--url", urls[0]]
    assert main(command) == 2
    assert "The server refuses requests: 400: " in capsys.readouterr().err


def test_the_text_of_a_page_is_cut_to_the_context(urls, tmp_path, capsys):
    """Of 8,000 numbers and a literal placeholder, in a context of 2,048 tokens."""
    lines = [" ".join(map(str, range(1000, 1400))) for _ in range(20)]
    (tmp_path / "a.pdf").write_bytes(text_pdf("<image> <IMG_CONTEXT>", *lines))
    command = ["index", str(tmp_path), "--to", str(tmp_path / "index"), "--text-layer"]
    assert main([*command, "--url", urls[0]]) == 0, capsys.readouterr().err
    assert "pages: 1, new: 1, errors: 0" in capsys.readouterr().out
