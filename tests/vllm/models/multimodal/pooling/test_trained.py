"""The embedded checkpoints find and rank pages that show a number.

Random checkpoints give all pages much the same values.
"""

import random

import numpy as np
import pytest
import torch

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from tiny_finder.evaluation import (
    ALIKE,
    draw_pages,
    embed,
    likeness,
    numbers,
    rank,
    recall,
)

OPTIONS = dict(dtype="float32", mm_processor_kwargs=None, max_model_len=1024)


@pytest.fixture(scope="module")
def embedder(make_llm, tiny_embed):
    return make_llm(tiny_embed, **OPTIONS)


def test_a_page_is_found_among_a_thousand(embedder):
    pages = draw_pages(numbers(random.Random("thousand"), 1000))
    found = np.argsort(-likeness(embedder, pages), axis=1)
    assert recall(found, 1) >= 0.95


def test_embeddings_are_the_references(embedder, tiny_embed):
    reference = RetrievalReference(tiny_embed)
    pages = draw_pages(["4711-08", "640-27", "$12.50"])
    prompts = [
        {"prompt": "passage: <image> ", "multi_modal_data": {"image": page.image}}
        for page in pages
    ]
    found = torch.from_numpy(embed(embedder, [*prompts, "query: 4711-08"]))
    pooled = [reference.pooled("passage: <image> ", [page.image]) for page in pages]
    pooled.append(reference.pooled("query: 4711-08", []))
    expected = torch.nn.functional.normalize(torch.stack(pooled), dim=-1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def ranker(make_llm, tiny_rerank):
    return make_llm(tiny_rerank, **OPTIONS)


def test_ranking_tells_pages_apart_that_embeddings_confuse(embedder, ranker):
    """Their numbers differ in a character or two."""
    pages = draw_pages(numbers(random.Random("alike"), 100, ALIKE))
    similar = likeness(embedder, pages)
    found = np.argsort(-similar, axis=1)
    assert recall(rank(ranker, pages, similar, 10), 1) > recall(found, 1)


def test_scores_are_the_references(ranker, tiny_rerank):
    reference = RetrievalReference(tiny_rerank)
    pages = draw_pages(["4711-08", "4711-80"])
    documents = [page.document() for page in pages]
    outputs = ranker.score("4711-08", documents, use_tqdm=False)
    found = torch.tensor([output.outputs.score for output in outputs])
    prompt = "<image> question:4711-08 \n \n passage:"
    expected = torch.tensor([reference.logit(prompt, [page.image]) for page in pages])
    assert torch.allclose(found, expected.sigmoid(), atol=1e-5)
    assert found[0] > 0.5 > found[1]
