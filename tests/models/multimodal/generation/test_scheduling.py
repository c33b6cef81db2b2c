"""The scheduler cuts a prompt where it likes, also inside a picture.

Run on vLLM's Model Runner V1 here and on V2 by ``model_runner_v2``.
"""

import random

import pytest
from vllm import SamplingParams

from drawn_text import PILLOW_FONT, Question, make_question
from reference.nemotron_vl import Reference

BLOCK = 32  # tokens of a block of the KV cache, and of a step at most
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
    """Outputs of prompts with pictures, alone or in a batch."""

    def generate(*requests):
        prompts = [
            {"prompt": text, "multi_modal_data": {"image": pictures}}
            if pictures
            else text
            for text, pictures in requests
        ]
        return llm.generate(prompts, GREEDY, use_tqdm=False)

    return generate


def tokens(output) -> list[int]:
    return list(output.outputs[0].token_ids)


def test_answers_are_the_references_where_prompts_are_cut(
    generate, reference, photo, page
):
    requests = [
        ("<image>\nRead.", [photo]),
        ("a<image>b<image>", [page.convert("RGB"), photo]),
        ("No picture, but a text that is longer than a step. " * 4, []),
    ]
    expected = [reference.answer(*request, GREEDY.max_tokens) for request in requests]
    for _ in range(2):  # the second time from the caches of prefixes and tiles
        found = generate(*requests)
        assert [output.prompt_token_ids for output in found] == [e[0] for e in expected]
        assert [tokens(output) for output in found] == [e[1] for e in expected]
    alone = [tokens(generate(request)[0]) for request in requests]
    assert alone == [e[1] for e in expected]
    # No step holds a picture, so each was cut.
    image = reference.tokenizer.convert_tokens_to_ids("<image>")
    assert expected[0][0].count(image) > BLOCK


def test_it_reads_in_pieces(generate, reference):
    """Pictures of drawn text, right and the reference's, all in one batch."""
    rng = random.Random(7)
    kinds = ["read", "both", "read", "count"]
    asked: list[Question] = [
        make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds
    ]
    requests = [(q.prompt(), [d.picture for d in q.drawings]) for q in asked]
    found = [tokens(output) for output in generate(*requests)]
    assert found == [reference.answer(*r, GREEDY.max_tokens)[1] for r in requests]


def test_a_prefix_may_end_inside_a_picture(llm, generate, reference, photo):
    texts = ["<image>\nRead.", "<image> What is it?", "<image>"]
    before = "The picture begins in a block: "
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
