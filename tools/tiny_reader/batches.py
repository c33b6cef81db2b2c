"""Batches of training examples, drawn in a process of their own."""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import IterableDataset

from drawn_text import LONGEST_OF_BOTH, Question
from vllm_nemotron_vl.entrypoints.nemotron_vl.reference import Reference

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


@dataclass
class Stage:
    """What is drawn: shared with the process that draws."""

    answers: torch.Tensor  # 0: only labels of patches, 1: also questions
    tiles: torch.Tensor  # 0: one per image, 1: as in FEW_TILES, 2: MANY_TILES
    effort: torch.Tensor  # 0 to 1

    @classmethod
    def first(cls) -> "Stage":
        return cls(*(torch.zeros(1).share_memory_() for _ in range(3)))

    def set(self, answers: float, tiles: float, effort: float) -> None:
        self.answers.fill_(answers)
        self.tiles.fill_(tiles)
        self.effort.fill_(effort)


class Drawer(IterableDataset):
    """Endless batches: lists of ``Views`` or of ``Example``."""

    def __init__(
        self, model: Reference, fonts: Path, stage: Stage, seed: str, tiles: int
    ) -> None:
        self.model, self.fonts, self.stage = model, fonts, stage
        self.seed, self.tiles = seed, tiles
        self.camera = Camera(model.tile_size, model.tower.patch_size)

    def __iter__(self):
        torch.set_num_threads(1)
        rng = random.Random(self.seed)
        artist = Artist(training_fonts(self.fonts))
        while True:
            answers = self.stage.answers.item() > 0
            batch: list[Views | Example] = []
            count = 0
            while count < self.tiles:
                if answers:
                    example = self.example(rng, artist)
                    count += sum(len(views.pixels) for views in example.views)
                    batch.append(example)
                else:
                    views = self.views(rng, artist)
                    count += len(views.pixels)
                    batch.append(views)
            yield batch

    def _limit(self, rng: random.Random) -> int:
        level = self.stage.tiles.item()
        if rng.random() >= level:
            return 1
        chosen = MANY_TILES if rng.random() < level - 1 else FEW_TILES
        (limit,) = rng.choices([*chosen], [*chosen.values()])
        return limit

    def views(self, rng: random.Random, artist: Artist) -> Views:
        """Views of one to three lines; of a grid, only those with characters."""
        effort = self.stage.effort.item()
        lines = [draw_string(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 3)))]
        limit = self._limit(rng)
        views = self.camera.views(
            *draw_views(rng, artist, self.camera, lines, limit, effort)
        )
        if len(views.pixels) == 1:
            return views
        has_text = (views.cells != 0).flatten(1).any(1) | (torch.rand(()) < 0.1)
        return views.only(has_text)

    def example(self, rng: random.Random, artist: Artist) -> Example:
        effort = self.stage.effort.item()
        (kind,) = rng.choices([*KINDS], [*KINDS.values()])
        several = rng.choice((2, 2, 3))
        count = {"lines": several, "frames": several, "both": 2}.get(kind, 1)
        longest = LONGEST_OF_BOTH if kind == "both" else MAX_LENGTH
        lines = [draw_string(rng, longest) for _ in range(count)]
        apart = kind in ("both", "frames")
        images = [[line] for line in lines] if apart else [lines]
        limit = 1 if kind == "frames" else self._limit(rng)
        drawn = [
            draw_views(rng, artist, self.camera, image, limit, effort)
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
