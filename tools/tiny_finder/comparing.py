"""What the checkpoint that ranks learns: whether a passage has the question's line."""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from nemotron_vl.verify.reference_retrieval import RetrievalReference

from .forward import Pooler, Prompt
from .learning import IMAGE
from .pages import almost, number

# Of the score's weight, which AdamW's small steps would change too slowly.
SCALE = 10.0


class Comparing(nn.Module):
    """Says of each character of a question whether the line has it in its place.

    A head for the training. It says more than which pairs are right: the score is a
    mean over the tokens, so a single wrong character has to be seen where it stands.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)

    def loss(
        self, states: list[torch.Tensor], questions: list[str], lines: list[str]
    ) -> torch.Tensor:
        """Of states (characters, width) of each question, and the passages' lines."""
        same = [
            float(letter == line[place : place + 1])
            for question, line in zip(questions, lines, strict=True)
            for place, letter in enumerate(question)
        ]
        wanted = torch.tensor(same)
        weight = torch.where(wanted > 0, 1.0, 2.0)
        logits = self.head(torch.cat(states))[:, 0]
        return F.binary_cross_entropy_with_logits(logits, wanted, weight)


def score(model: RetrievalReference, pooled: torch.Tensor) -> torch.Tensor:
    """Logits of pooled states (pairs, width), with the weight as it is trained."""
    assert model.score_head is not None
    return SCALE * model.score_head(pooled)[:, 0]


def ranking_losses(
    model: RetrievalReference,
    comparing: Comparing,
    pooler: Pooler,
    passages: Sequence[tuple[list[str], int | None]],
    rng: random.Random,
) -> dict[str, torch.Tensor]:
    """Losses of right and wrong pairs, and the share of right firsts.

    Args:
        model: To train.
        comparing: To train.
        pooler: Of the step.
        passages: The lines of each, and which page shows them; None is a text.
        rng: Source of the questions.
    """
    prompts: list[Prompt] = []
    questions, labels, spans, passage_of = [], [], [], []
    for passage, (lines, page) in enumerate(passages):
        right = rng.choice(lines)
        other = rng.choice(rng.choice(passages)[0])
        wrong = [almost(rng, right), almost(rng, rng.choice(lines)), number(rng), other]
        image, text = ("", "\n".join(lines)) if page is None else (IMAGE, "")
        for question in (right, *wrong):
            before = f"{image}question:"
            prompts.append((f"{before}{question} \n \n passage:{text}", page))
            spans.append((before, question))
            questions.append(question)
            labels.append(float(question in lines))
            passage_of.append(passage)
    states = pooler.states(prompts, 64)
    logits = score(model, torch.stack([state.mean(0) for state in states]))
    targets = torch.tensor(labels)
    weight = torch.where(targets > 0, 3.0, 1.0)
    of_pairs = F.binary_cross_entropy_with_logits(logits, targets, weight)
    # The right question of each passage stands first.
    rows = logits.view(len(passages), -1)
    taken = targets.view_as(rows).bool()
    taken[:, 0] = False
    rows = rows.masked_fill(taken, float("-inf"))
    of_rows = F.cross_entropy(rows, torch.zeros(len(rows), dtype=torch.long))
    with torch.no_grad():
        firsts = (rows.argmax(1) == 0).float().mean()
    single = [
        place
        for place, passage in enumerate(passage_of)
        if len(passages[passage][0]) == 1
    ]
    losses = {"rank": of_pairs + 0.5 * of_rows, "firsts": firsts}
    if single:
        losses["same"] = comparing.loss(
            [
                states[place][pooler.place(spans[place], prompts[place][1])]
                for place in single
            ],
            [questions[place] for place in single],
            [passages[passage_of[place]][0][0] for place in single],
        )
    return losses
