"""The embedded checkpoint can read, and the engine answers as the reference does.

The images are drawn with Pillow's built-in font, one of many in the training.
"""

import pytest
import torch

from evaluate_tiny import answer_with_engine, answer_with_reference, draw_questions
from nemotron_vl.verify.reference import Reference
from typefaces import PILLOW_FONT

COUNT = 100


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def questions(reference):
    return draw_questions(PILLOW_FONT, COUNT, seed=0)


def rights(questions, answers) -> list[bool]:
    return [a == q.turns[0][1] for q, a in zip(questions, answers, strict=True)]


@pytest.fixture(scope="module")
def expected(reference, questions) -> list[str]:
    with torch.inference_mode():
        return answer_with_reference(reference, questions)


def test_most_answers_are_right(questions, expected):
    found = rights(questions, expected)
    assert sum(found) >= 0.85 * COUNT
    reads = [r for q, r in zip(questions, found, strict=True) if q.kind == "read"]
    assert sum(reads) >= 0.9 * len(reads)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_engine_answers_as_the_reference(
    start_llm, tiny, reference, questions, expected, dtype
):
    llm = start_llm(tiny, dtype=dtype)
    answers = [answer_with_engine(llm, reference, questions)]
    if dtype == "float32":
        assert answers == [expected]
        answers.append(answer_with_engine(llm, reference, questions, resize="fast"))
    for found in answers:
        difference = sum(rights(questions, found)) - sum(rights(questions, expected))
        assert abs(difference) <= 0.02 * COUNT
