"""The embedded checkpoint finds pages that show a number.

Random checkpoints give all pages much the same values.
"""

import random

import numpy as np
import pytest
import torch

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from tiny_finder.evaluation import (
    draw_pages,
    embed,
    likeness,
    numbers,
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
