"""The embedded checkpoints find and rank pages that show a number.

The values that random checkpoints give are alike for all pages; these are not.
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
FIRST = 5  # pages that are ranked


@pytest.fixture(scope="module")
def embedder(make_llm, tiny_embed):
    return make_llm(tiny_embed, **OPTIONS)


@pytest.fixture(scope="module")
def ranker(make_llm, tiny_rerank):
    return make_llm(tiny_rerank, **OPTIONS)


@pytest.fixture(scope="module")
def near():
    """Pages of numbers that differ in a character or two."""
    return draw_pages(numbers(random.Random("near"), 200, ALIKE), seed=1)


def test_a_page_is_found_among_a_thousand(embedder):
    pages = draw_pages(numbers(random.Random("thousand"), 1000))
    found = np.argsort(-likeness(embedder, pages), axis=1)
    assert recall(found, 1) >= 0.95


def test_ranking_is_better_than_embeddings_alone(embedder, ranker, near):
    similar = likeness(embedder, near)
    alone = recall(np.argsort(-similar, axis=1), 1)
    assert recall(rank(ranker, near, similar, FIRST), 1) > alone


def test_embeddings_are_the_references(embedder, tiny_embed, near):
    reference = RetrievalReference(tiny_embed)
    pages = near[:5]
    prompts = [
        {"prompt": "passage: <image> ", "multi_modal_data": {"image": page.image}}
        for page in pages
    ]
    found = torch.from_numpy(embed(embedder, [*prompts, "query: 4711-08"]))
    pooled = [reference.pooled("passage: <image> ", [page.image]) for page in pages]
    pooled.append(reference.pooled("query: 4711-08", []))
    expected = torch.nn.functional.normalize(torch.stack(pooled), dim=-1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_scores_are_the_references(ranker, tiny_rerank, near):
    reference = RetrievalReference(tiny_rerank)
    for page in near[:3]:
        (output,) = ranker.score(page.text, [page.document()], use_tqdm=False)
        prompt = f"<image> question:{page.text} \n \n passage:"
        logit = torch.tensor(reference.logit(prompt, [page.image]))
        assert abs(output.outputs.score - logit.sigmoid().item()) < 1e-5
