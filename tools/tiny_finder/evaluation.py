"""Pages that the training does not draw, and how many of them are found."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from drawn_text import make_question
from nemotron_vl.verify.images import png_url
from tiny_reader.held_out import painted
from tiny_reader.views import HeldOutTiler
from typefaces import CHARACTERS, PILLOW_FONT, Typeface, find_fonts

from .pages import almost, number

ALIKE = 10  # numbers of the set "near" that differ in few characters


@dataclass
class Drawn:
    """A page with one number."""

    text: str
    image: Image.Image

    def document(self) -> dict:
        """As the API for scores takes it."""
        part = {"type": "image_url", "image_url": {"url": png_url(self.image)}}
        return {"content": [part]}


def numbers(rng: random.Random, count: int, alike: int = 1) -> list[str]:
    """Different numbers, in groups of which ``alike`` are almost equal."""
    found: dict[str, None] = {}
    while len(found) < count:
        if not {*(text := number(rng))} <= {*CHARACTERS}:
            continue
        group = {text: None}
        while len(group) < alike:
            group[almost(rng, text)] = None
        if not found.keys() & group.keys():
            found |= group
    return [*found][:count]


def draw_pages(
    texts: list[str], fonts: list[Typeface] = PILLOW_FONT, seed: int = 0
) -> list[Drawn]:
    """Pages by the generator of drawn_text."""
    rng, tiler = random.Random(f"pages {seed}"), HeldOutTiler(max_tiles=6)
    pages = []
    for text in texts:
        question = make_question(rng, fonts, tiler, "read", text=text)
        pages.append(Drawn(text, question.images[0].convert("RGB")))
    return pages


def draw_set(name: str, fonts: Path, count: int, seed: int = 0) -> list[Drawn]:
    """A set of pages; the training has the typeface of ``pillow`` alone.

    Args:
        name: ``pillow``, ``generator``, ``near`` (numbers that are almost equal) or
            ``elsewhere`` (drawn by Cairo).
        fonts: Folder that tools/fonts.sh wrote.
        count: Pages.
        seed: Seed of all choices.
    """
    rng = random.Random(f"{name} {seed}")
    texts = numbers(rng, count, ALIKE if name == "near" else 1)
    if name == "elsewhere":
        images = painted(fonts, texts, seed)
        return [Drawn(*pair) for pair in zip(texts, images, strict=True)]
    found = PILLOW_FONT if name == "pillow" else find_fonts(fonts / "held_out")
    return draw_pages(texts, found, seed)


def embed(llm, prompts: list, batch: int = 200) -> np.ndarray:
    """Embeddings (prompts, width) of length 1."""
    found = []
    for start in range(0, len(prompts), batch):
        outputs = llm.embed(prompts[start : start + batch], use_tqdm=False)
        found += [output.outputs.embedding for output in outputs]
    return np.array(found, np.float32)


def likeness(llm, pages: list[Drawn]) -> np.ndarray:
    """Similarities (questions, pages): the question about each page, and the pages."""
    images = [
        {"prompt": "passage: <image> ", "multi_modal_data": {"image": page.image}}
        for page in pages
    ]
    questions = embed(llm, [f"query: {page.text}" for page in pages])
    return questions @ embed(llm, images).T


def rank(llm, pages: list[Drawn], similar: np.ndarray, first: int) -> np.ndarray:
    """The ``first`` pages of each question (questions, first), ordered by score."""
    documents = [page.document() for page in pages]
    order = np.argsort(-similar, axis=1)[:, :first]
    ranked = []
    for page, row in zip(pages, order, strict=True):
        outputs = llm.score(page.text, [documents[n] for n in row], use_tqdm=False)
        scores = [output.outputs.score for output in outputs]
        ranked.append(row[np.argsort(-np.array(scores), kind="stable")])
    return np.array(ranked)


def recall(order: np.ndarray, at: int) -> float:
    """Share of the questions whose own page is among the first ``at`` ones."""
    own = np.arange(len(order))[:, None]
    return float((order[:, :at] == own).any(1).mean())
