# SPDX-License-Identifier: Apache-2.0
"""Signs of a model that reads nothing, on which vLLM and the reference may agree.

Both compute the same from damaged weights.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from .reading import Reading

# Questions whose answers cannot be guessed, and the least share of right ones.
_PLAIN = {"one line", "letter"}
_FEWEST, _LEAST_RIGHT = 5, 0.1

# A piece of text that is written at least five times, and nothing else.
_REPEATED = re.compile(r"\s*(.{1,16}?)\1{4,}.{0,16}", re.DOTALL)


def reading_problems(reading: Reading) -> list[str]:
    """What the answers to the questions about documents say against a model."""
    problems = []
    # Also in a sentence: a model that wraps its answers reads them all the same.
    plain = [
        question.answer.lower() in answer.lower()
        for question, answer in zip(reading.questions, reading.answers, strict=True)
        if question.kind in _PLAIN
    ]
    if len(plain) >= _FEWEST and sum(plain) < _LEAST_RIGHT * len(plain):
        problems.append(
            f"The model reads nothing: {sum(plain)} of {len(plain)} plain lines are "
            "right. Its weights are damaged or not trained, or prompt, template or "
            "pixel shuffle are not its own."
        )
    stuck = sum(bool(_REPEATED.fullmatch(answer)) for answer in reading.answers)
    if 2 * stuck > len(reading.answers):
        problems.append(
            f"{stuck} of {len(reading.answers)} answers repeat one piece of text."
        )
    return problems


def logits_problems(images: Iterable[Mapping[str, torch.Tensor]]) -> list[str]:
    """What the reference's logits and tokens say against a model.

    Args:
        images: ``logits`` ``(tokens, vocabulary)`` and ``tokens`` of each image, as
            `write_expected` writes them.
    """
    found = [(image["logits"], image["tokens"]) for image in images]
    if not all(logits.isfinite().all() for logits, _ in found):
        return ["Logits of the reference are not finite."]
    if any(logits.max() == logits.min() for logits, _ in found):
        return ["The reference finds all tokens equally likely."]
    if len(found) < 3:
        return []
    (first, _), *rest = found
    if all(torch.allclose(first[0], logits[0]) for logits, _ in rest):
        return ["The first token's logits are the same for all images."]
    stuck = sum(len({*answer.tolist()}) == 1 for _, answer in found)
    if 2 * stuck > len(found):
        return [f"{stuck} of {len(found)} answers repeat one token."]
    return []
