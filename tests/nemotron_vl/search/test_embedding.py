"""What is sent about a page: its image, and as much of its text as fits."""

import base64

import pytest

from nemotron_vl.documents.pages import Page
from nemotron_vl.search.embedding import Embedder, trial_page
from nemotron_vl.search.ranking import Ranker
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    choose_grid,
)

PAGE = Page("a.pdf", 1, b"PNG", "image/png", (1, 1))
IMAGE = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"PNG").decode()},
}


def sent(text, context=None, image_tokens=0):
    embedder = Embedder("m", context, image_tokens=image_tokens)
    (message,) = embedder.request([PAGE._replace(text=text)])["messages"]
    assert message["role"] == "document" and message["content"][0] == IMAGE
    return message["content"][1:]


def test_a_page_is_a_document_and_a_question_a_query():
    assert sent(None) == sent("") == []
    (message,) = Embedder("m", None, "Where?").trial()["messages"]
    assert message == {"role": "query", "content": [{"type": "text", "text": "Where?"}]}


def test_the_text_fits_the_context():
    (part,) = sent("\u00e9" * 100, context=64 + 30 + 11, image_tokens=30)
    assert part == {"type": "text", "text": "\u00e9" * 5}  # of two bytes each
    (part,) = sent("word " * 10_000, image_tokens=1794)
    assert len(part["text"]) == 10240 - 64 - 1794


def test_a_ranked_pages_text_fits_beside_the_question():
    ranker = Ranker("m", 64 + 30 + 6 + 11, "Where?", image_tokens=30)
    (document,) = ranker.request([PAGE._replace(text="\u00e9" * 100)])["documents"]
    assert document["content"] == [IMAGE, {"type": "text", "text": "\u00e9" * 5}]


def test_the_text_holds_no_token_of_an_image():
    (part,) = sent("a<image>b<img><IMG_CONTEXT></img>c<ima<img>ge>")
    assert part["text"] == "a b   c<ima ge>"


def test_a_page_without_a_text_layer_is_ranked_by_its_image():
    request = Ranker("m", None, "Where?").request([PAGE])
    documents = [{"content": [IMAGE]}]
    assert request == {"model": "m", "query": "Where?", "documents": documents}


@pytest.mark.parametrize("side", [64, 512])
def test_the_trial_page_shows_how_many_tiles_a_server_takes(side):
    grids = [
        choose_grid(
            *trial_page().size,
            image_size=side,
            min_tiles=1,
            max_tiles=most,
            use_thumbnail=True,
        )
        for most in range(1, 25)
    ]
    assert [grid[:2] for grid in grids] == [(most, 1) for most in range(1, 25)]
