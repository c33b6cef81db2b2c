"""Batches of training examples."""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from drawn_text import LONGEST_OF_BOTH, Question
from nemotron_vl.verify.reference import Reference

from .drawing import Artist, training_fonts
from .strings import KINDS, MAX_LENGTH, ask, draw_string
from .views import IGNORED, Camera, Views, draw_views

# Most tiles of an image, and how often: at first few, which teach more per second,
# then as many as images have.
FEW_TILES = {1: 0.3, 2: 0.15, 3: 0.15, 4: 0.15, 6: 0.13, 9: 0.05, 12: 0.07}
MANY_TILES = {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.15, 6: 0.2, 9: 0.1, 12: 0.25}


@dataclass
class Example:
    """A conversation: the views of its images, and its tokens."""

    kind: str
    views: list[Views]
    ids: torch.Tensor  # (tokens,)
    labels: torch.Tensor  # (tokens,), IGNORED outside the answers


@dataclass(frozen=True)
class Stage:
    """What is drawn."""

    answers: bool  # questions, else only labels of patches
    tiles: float  # 0: one per image, 1: as in FEW_TILES, 2: MANY_TILES
    effort: float  # 0 to 1


class Drawer:
    """Draws batches: lists of ``Views`` or of ``Example``."""

    def __init__(self, model: Reference, fonts: Path, tiles: int) -> None:
        self.model, self.tiles = model, tiles
        self.artist = Artist(training_fonts(fonts))
        self.camera = Camera(model.tile_size, model.tower.patch_size)

    def batch(self, seed: str, stage: Stage) -> list:
        """A batch of at least ``tiles`` tiles; the seed decides everything."""
        rng = random.Random(seed)
        batch: list[Views | Example] = []
        count = 0
        while count < self.tiles:
            if stage.answers:
                example = self.example(rng, stage)
                count += sum(len(views.pixels) for views in example.views)
                batch.append(example)
            else:
                views = self.views(rng, stage)
                count += len(views.pixels)
                batch.append(views)
        return batch

    def _limit(self, rng: random.Random, stage: Stage) -> int:
        if rng.random() >= stage.tiles:
            return 1
        chosen = MANY_TILES if rng.random() < stage.tiles - 1 else FEW_TILES
        (limit,) = rng.choices([*chosen], [*chosen.values()])
        return limit

    def views(self, rng: random.Random, stage: Stage) -> Views:
        """Views of one to three lines; of a grid, only those with characters."""
        lines = [draw_string(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 3)))]
        limit = self._limit(rng, stage)
        views = self.camera.views(
            *draw_views(rng, self.artist, self.camera, lines, limit, stage.effort)
        )
        if len(views.pixels) == 1:
            return views
        has_text = (views.cells != 0).flatten(1).any(1) | (rng.random() < 0.1)
        return views.only(has_text)

    def example(self, rng: random.Random, stage: Stage) -> Example:
        """A conversation about an image, or about two or a video."""
        (kind,) = rng.choices([*KINDS], [*KINDS.values()])
        several = rng.choice((2, 2, 3))
        count = {"lines": several, "frames": several, "both": 2}.get(kind, 1)
        longest = LONGEST_OF_BOTH if kind == "both" else MAX_LENGTH
        lines = [draw_string(rng, longest) for _ in range(count)]
        apart = kind in ("both", "frames")
        images = [[line] for line in lines] if apart else [lines]
        limit = 1 if kind == "frames" else self._limit(rng, stage)
        drawn = [
            draw_views(rng, self.artist, self.camera, image, limit, stage.effort)
            for image in images
        ]
        turns = ask(rng, kind, lines)[: rng.choice((1, 1, 1, 2, 3))]
        question = Question(kind, [drawing for drawing, _ in drawn], turns)
        views = [self.camera.views(*pair) for pair in drawn]
        if kind == "frames":
            # A video is one image in the prompt, of a tile for each frame.
            question.drawings = question.drawings[:1]
            views = [Views.joined(views)]
        return encode(self.model, question, views)


def encode(model: Reference, question: Question, views: list[Views]) -> Example:
    """Encode the conversation in the chat format and label its answers."""
    ids: list[int] = []
    labels: list[int] = []
    tiles = tuple(len(v.pixels) for v in views)
    for number, (_, answer) in enumerate(question.turns):
        prompt = _ids(model, question.prompt(number), () if number else tiles)
        ids += prompt
        labels += [IGNORED] * len(prompt)
        written = _answer(model, answer)
        ids += written
        labels += written
    return Example(question.kind, views, torch.tensor(ids), torch.tensor(labels))


@functools.lru_cache(maxsize=4096)
def _ids(model: Reference, prompt: str, tiles: tuple[int, ...]) -> list[int]:
    if tiles:
        prompt = model.expand(prompt, [*tiles])
    return model.tokenizer.encode(prompt, add_special_tokens=bool(tiles))


def _answer(model: Reference, text: str) -> list[int]:
    return model.tokenizer.encode(f"{text}<|eot_id|>", add_special_tokens=False)
