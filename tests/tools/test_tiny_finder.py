"""What the training of the finding and ranking checkpoints computes and draws."""

import random

import pytest
import torch

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.noise import noise
from tiny_finder.comparing import Comparing
from tiny_finder.evaluation import ALIKE, draw_pages, numbers
from tiny_finder.forward import Pooler, encode
from tiny_finder.pages import almost
from tiny_finder.weights import orthogonal
from tiny_reader.strings import CHARACTERS
from train_tiny import export


@pytest.fixture(scope="module")
def model(rerank_checkpoint):
    return RetrievalReference(rerank_checkpoint)


def test_the_arithmetic_is_the_references(model):
    """Also of prompts of different lengths, which are padded."""
    images = [noise(64, 64), noise(300, 200)]
    pixels = [model.to_pixels(image) for image in images]
    features = encode(model, torch.cat(pixels), torch.float32)
    pooler = Pooler(model, features, [*map(len, pixels)], torch.float32)
    asked = [("passage: <image> ", 1), ("query: 4711-08", None), ("<image> 7", 0)]
    for (prompt, page), found in zip(asked, pooler(asked), strict=True):
        expected = model.pooled(prompt, [] if page is None else [images[page]])
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("page", [None, 0])
def test_the_characters_of_a_question_are_found(model, page):
    """Each is a token: of a text, and behind the tokens of an image."""
    pooler = Pooler(model, torch.zeros(2, 16, 64), [2], torch.float32)
    before = "question:" if page is None else "<image> question:"
    text = f"{before}$73.1%-08 \n \n passage:"
    if page is not None:
        text = model.expand(text, [2])
    ids = model.tokenizer.encode(text)
    place = pooler.place((before, "$73.1%-08"), page)
    tokens = model.tokenizer.convert_ids_to_tokens(ids[place])
    assert tokens == [*"$73.1%-08"]


def test_characters_are_compared_in_their_places():
    comparing = Comparing(1)
    comparing.head.weight.data.fill_(1.0)
    comparing.head.bias.data.zero_()
    same = [torch.tensor([[9.0], [9.0], [-9.0]])]
    assert comparing.loss(same, ["471"], ["47"]) < 0.01
    assert comparing.loss(same, ["471"], ["4711"]) > 1
    assert comparing.loss(same, ["471"], ["742"]) > 1


def test_a_step_is_close_to_orthogonal():
    for shape in ((2, 24, 24), (2, 12, 24), (2, 24, 12)):
        torch.manual_seed(0)
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert found.quantile(0.1) > 0.5
        assert found.max() < 1.3


def test_numbers_differ_and_those_of_a_group_are_alike():
    rng = random.Random(0)
    assert len({*numbers(rng, 300)}) == 300
    found = numbers(rng, 5 * ALIKE, ALIKE)
    assert len({*found}) == 5 * ALIKE
    for start in range(0, len(found), ALIKE):
        first, *others = found[start : start + ALIKE]
        assert all(abs(len(first) - len(other)) <= 1 for other in others)
    for _ in range(200):
        text = rng.choice(found)
        assert almost(rng, text) != text
    assert set("".join(found)) <= {*CHARACTERS}


def test_a_page_shows_its_number():
    """The same seed draws the same pages; another text another page."""
    pages = draw_pages(["4711-08", "$12.50"])
    again = draw_pages(["4711-08", "$12.51"])
    assert pages[0].image.tobytes() == again[0].image.tobytes()
    assert pages[1].image.tobytes() != again[1].image.tobytes()


def test_weights_are_written_as_they_were_read(model, rerank_checkpoint, tmp_path):
    export(model, rerank_checkpoint, tmp_path / "out")
    written = RetrievalReference(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(written[name], tensor), name
