"""Requests whose answers the tests of several engines know."""

import random

import pytest

from drawn_text import make_question
from nemotron_vl.verify.reference import Reference
from support.chat import chat_request, reference_text
from support.served import TOKENS
from typefaces import PILLOW_FONT


@pytest.fixture(scope="session")
def requests(tiny) -> list[dict]:
    """Chat requests with one image and with two, and their answers."""
    reference = Reference.load(tiny)
    rng = random.Random(4)
    kinds = ["read", "read", "both", "lines", "both", "count"]
    questions = [make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds]
    return [
        {
            "request": chat_request(question, tokens=TOKENS),
            "answer": reference_text(reference, question, tokens=TOKENS),
        }
        for question in questions
    ]
