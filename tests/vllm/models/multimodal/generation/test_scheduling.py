"""Chunked prefill: the scheduler may split a prompt inside an image's tokens.

These tests use vLLM's Model Runner V1; ``model_runner_v2`` runs them on V2.
"""

import random

import pytest
from vllm import SamplingParams

from drawn_text import Question, make_question
from nemotron_vl.verify.reference import Reference
from support import engines
from typefaces import PILLOW_FONT

BLOCK = 32  # tokens in a KV cache block; also the most tokens in a step
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def llm(make_llm, tiny):
    return make_llm(
        tiny,
        dtype="float32",
        block_size=BLOCK,
        max_num_batched_tokens=BLOCK,
        additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
    )


@pytest.fixture
def generate(llm):
    """A function that generates outputs for a batch of prompts with images."""
    return lambda *requests: engines.generate(llm, requests, GREEDY)


def tokens(output) -> list[int]:
    return list(output.outputs[0].token_ids)


def test_split_prompts_give_the_references_answers(generate, reference, photo, page):
    requests = [
        ("<image>\nRead.", [photo]),
        ("a<image>b<image>", [page.convert("RGB"), photo]),
        ("No image, but a text that is longer than a step. " * 4, []),
    ]
    expected = [reference.answer(*request, GREEDY.max_tokens) for request in requests]
    for _ in range(2):  # the second time from the prefix cache and the tile cache
        found = generate(*requests)
        assert [output.prompt_token_ids for output in found] == [e[0] for e in expected]
        assert [tokens(output) for output in found] == [e[1] for e in expected]
    alone = [tokens(generate(request)[0]) for request in requests]
    assert alone == [e[1] for e in expected]
    # An image has more tokens than a step, so the scheduler split each one.
    image = reference.tokenizer.convert_tokens_to_ids("<image>")
    assert expected[0][0].count(image) > BLOCK


def test_reading_from_split_prompts(generate, reference):
    """Questions about drawn text, in one batch, get the reference's answers."""
    rng = random.Random(7)
    kinds = ["read", "both", "read", "count"]
    asked: list[Question] = [
        make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds
    ]
    requests = [(q.prompt(), q.images) for q in asked]
    found = [tokens(output) for output in generate(*requests)]
    assert found == [reference.answer(*r, GREEDY.max_tokens)[1] for r in requests]


def test_a_prefix_may_end_inside_an_image(llm, generate, reference, photo):
    texts = ["<image>\nRead.", "<image> What is it?", "<image>"]
    before = "The image begins in a block: "
    requests = [(before + text, [photo]) for text in texts]
    llm.reset_prefix_cache()
    image = reference.tokenizer.convert_tokens_to_ids("<image>")
    for number, request in enumerate(requests):
        ids, expected, _ = reference.answer(*request, GREEDY.max_tokens)
        (output,) = generate(request)
        assert tokens(output) == expected
        first, last = ids.index(image), len(ids) - 1 - ids[::-1].index(image)
        if number == 0:
            assert output.num_cached_tokens == 0
        else:
            assert first < output.num_cached_tokens < last
