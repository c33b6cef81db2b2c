"""A model that reads nothing fails, also where vLLM and the reference agree on it."""

import json
import shutil

import pytest
import torch

from nemotron_vl.commands import verify as command
from nemotron_vl.main import main
from nemotron_vl.verify.documents import draw_documents, draw_numbers
from nemotron_vl.verify.plausibility import logits_problems, reading_problems
from nemotron_vl.verify.reading import Reading
from support.damage import swap_layers


@pytest.mark.parametrize("draw", [draw_documents, draw_numbers])
@pytest.mark.parametrize(("right", "found"), [(0, 1), (1, 0)])
def test_plain_lines_that_are_not_read(draw, right, found):
    """One of five is enough: the rest may be hard, and guesses are never right."""
    questions = draw(25)
    plain = [n for n, q in enumerate(questions) if q.kind in ("one line", "letter")]
    answers = ["7"] * len(questions)
    for number in plain[:right]:
        answers[number] = questions[number].answer
    problems = reading_problems(Reading(questions, answers, 1.0))
    assert len(problems) == found
    if found:
        assert f"reads nothing: 0 of {len(plain)} plain lines" in problems[0]


def test_right_answers_in_sentences_are_read():
    questions = draw_documents(20)
    answers = [f"The answer is {question.answer}." for question in questions]
    assert reading_problems(Reading(questions, answers, 1.0)) == []


def test_few_questions_prove_nothing():
    questions = draw_numbers(10)
    assert reading_problems(Reading(questions, ["7"] * 10, 1.0)) == []


@pytest.mark.parametrize(
    ("answer", "stuck"),
    [
        ("!!!!!!!!!!", True),
        (" 0.0.0.0.0.0.0.", True),
        ("the the the the the the", True),
        ("1/4", False),
        ("$11.11", False),
        ("", False),
        ("The total of the invoice is 1000000.", False),
    ],
)
def test_answers_that_repeat_themselves(answer, stuck):
    questions = draw_documents(4)
    answers = [answer] * 3 + ["Oslo"]
    problems = reading_problems(Reading(questions, answers, 1.0))
    assert problems == (["3 of 4 answers repeat one piece of text."] if stuck else [])
    if stuck:  # half of them may
        halves = Reading(questions, [answer] * 2 + ["Oslo"] * 2, 1.0)
        assert reading_problems(halves) == []


def images(logits: torch.Tensor, tokens: torch.Tensor) -> list[dict]:
    pairs = zip(logits, tokens, strict=True)
    return [{"logits": one, "tokens": other} for one, other in pairs]


@pytest.fixture
def logits() -> torch.Tensor:
    """Of 3 images, 4 tokens and a vocabulary of 10."""
    return torch.randn((3, 4, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tokens(logits) -> torch.Tensor:
    return logits.argmax(-1)


def test_sound_logits(logits, tokens):
    assert logits_problems(images(logits, tokens)) == []


def test_logits_that_are_not_finite(logits, tokens):
    logits[2, 3, 0] = float("nan")
    (problem,) = logits_problems(images(logits, tokens))
    assert "not finite" in problem


def test_logits_without_a_preference(logits, tokens):
    logits[1] = 0.5
    (problem,) = logits_problems(images(logits, tokens))
    assert "equally likely" in problem


def test_logits_that_no_image_changes(logits, tokens):
    logits[:, 0] = logits[0, 0]
    (problem,) = logits_problems(images(logits, tokens))
    assert "the same for all images" in problem
    assert logits_problems(images(logits[:2], tokens[:2])) == []


def test_one_token_for_ever(logits, tokens):
    tokens[:] = torch.tensor([[7], [8], [9]])
    assert logits_problems(images(logits, tokens)) == [
        "3 of 3 answers repeat one token."
    ]
    tokens[1:, 3] = 1
    assert logits_problems(images(logits, tokens)) == []


def test_exchanged_tensors_fail_although_both_sides_agree(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_ENVIRONMENT", {})
    folder = shutil.copytree(tiny, tmp_path / "copy")
    swap_layers(folder, "self_attn.q_proj")
    options = ["--dtype", "float32", "--parts", "compare", "read", "--questions", "25"]
    options += ["--images", "price", "--out", str(tmp_path / "out")]
    assert main(["verify", str(folder), *options]) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["wrong_stages"] == results["failed"] == []
    assert results["reading"]["questions"] == 25  # recognised by its content
    assert {row["ok"] for row in results["rows"]} == {True}
    problem, *_ = results["problems"]
    assert "The model reads nothing: 0 of 5 plain lines are right." in problem
    text = (tmp_path / "out" / "results.md").read_text()
    assert text.splitlines()[2] == problem
