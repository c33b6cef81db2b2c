"""What the checkpoint that embeds learns: questions close to their pages."""

import random

import torch
import torch.nn.functional as F
from torch import nn

from tiny_reader.strings import CHARACTERS

from .forward import Pooler, Prompt
from .pages import Page, almost, number, page_lines

TEMPERATURE = 0.05
WRONG = 3  # questions of a page that differ from its line in a character or two
TEXTS = 0.25  # passages of text, as a share of the pages
BOTH = 0.1  # share of the pages with their text beside the image

IMAGE = "<image> "


class Spelling(nn.Module):
    """Reads the characters of a line from an embedding, a head for the training.

    It says more than which page is meant: without it, digits are found long before
    their order.
    """

    places = 10

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.head = nn.Linear(width, self.places * (len(CHARACTERS) + 1))

    def loss(self, embeddings: torch.Tensor, texts: list[str]) -> torch.Tensor:
        """Of embeddings (n, width) of length 1 and their n lines."""
        wanted = torch.zeros(len(texts), self.places, dtype=torch.long)
        for row, text in zip(wanted, texts, strict=True):
            for place, letter in enumerate(text[: self.places]):
                row[place] = CHARACTERS.index(letter) + 1
        found = self.head(embeddings * self.scale).unflatten(-1, (self.places, -1))
        return F.cross_entropy(found.flatten(0, 1), wanted.flatten())


def texts_loss(
    spelling: Spelling, pooler: Pooler, count: int, rng: random.Random
) -> torch.Tensor:
    """Loss of the spelling of ``count`` texts without an image."""
    texts = [number(rng) for _ in range(count // 2)]
    texts += [almost(rng, text) for text in texts]
    prefixes = rng.choices(("query: ", "passage: "), k=len(texts))
    prompts = [(f"{a}{b}", None) for a, b in zip(prefixes, texts, strict=True)]
    return spelling.loss(F.normalize(pooler(prompts, count), dim=-1), texts)


def passages(
    pages: list[Page], rng: random.Random
) -> tuple[list[list[str]], list[Prompt]]:
    """Lines of each passage, and its text without a prefix, with its page."""
    lines = [page.lines for page in pages]
    texts: list[Prompt] = []
    for place, page in enumerate(pages):
        beside = "\n".join(page.lines) if rng.random() < BOTH else ""
        texts.append((IMAGE + beside, place))
    for _ in range(round(TEXTS * len(pages))):
        lines.append(page_lines(rng))
        texts.append(("\n".join(lines[-1]), None))
    return lines, texts


def embedding_losses(
    spelling: Spelling, pooler: Pooler, pages: list[Page], rng: random.Random
) -> dict[str, torch.Tensor]:
    """Loss of the similarities in both directions, and the share of found pages."""
    lines, texts = passages(pages, rng)
    asked = [rng.choice(page) for page in lines]
    wrong = [almost(rng, line) for line in asked for _ in range(WRONG)]
    questions = asked + wrong
    prompts = [(f"query: {text}", None) for text in questions]
    prompts += [(f"passage: {text}", page) for text, page in texts]
    pooled = F.normalize(pooler(prompts), dim=-1)
    query, passage = pooled.split([len(questions), len(texts)])
    likeness = query @ passage.T / TEMPERATURE
    # Another right pair is no mistake.
    right = torch.tensor([[text in page for page in lines] for text in questions])
    count = len(texts)
    own = torch.arange(count)
    right[own, own] = False
    likeness = likeness.masked_fill(right, float("-inf"))
    # Of the wrong questions, a page has to tell its own apart.
    others = torch.ones(count, len(wrong), dtype=torch.bool)
    for place in range(count):
        others[place, WRONG * place : WRONG * (place + 1)] = False
    of_page = likeness.T.clone()
    of_page[:, count:] = of_page[:, count:].masked_fill(others, float("-inf"))
    forth = F.cross_entropy(likeness[:count], own)
    back = F.cross_entropy(of_page, own)
    with torch.no_grad():
        found = (likeness[:count].argmax(1) == own).float().mean()
        told = (of_page.argmax(1) == own).float().mean()
    single = [place for place, page in enumerate(lines) if len(page) == 1]
    spelt = spelling.loss(passage[single], [lines[place][0] for place in single])
    return {
        "find": forth + back,
        "spelt": spelt,
        "asked": spelling.loss(query, questions),
        "found": found,
        "told": told,
    }
