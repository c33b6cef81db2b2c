"""Batches for the training without waiting: new ones as they come, else earlier ones.

Drawing takes a part of the machine's time. Instead of waiting for a batch, the training
takes an earlier one again, in other colours.
"""

import multiprocessing as mp
import os
import pickle
import queue
import random
from collections import deque
from dataclasses import replace

import torch

from .batches import Drawer, Example
from .views import Views

KEPT = 150  # batches, 5 MB each
LEAST_KEPT = 8  # before one is taken again
MOST_REPEATS = 3  # earlier batches for each new one


def _draw(drawer: Drawer, batches: mp.Queue, training: int) -> None:
    """Put batches into the queue for as long as the process ``training`` lives."""
    os.nice(5)
    for batch in drawer:
        pickled = pickle.dumps(batch)  # by value, without shared memory
        while True:
            if os.getppid() != training:
                os._exit(1)
            try:
                batches.put(pickled, timeout=1)
                break
            except queue.Full:
                pass


def recolour(rng: random.Random, views: Views) -> Views:
    """The same drawing with other channels, perhaps inverted and paler."""
    pixels = views.pixels[:, rng.sample(range(3), 3)].float()
    if rng.random() < 0.5:
        pixels = 255 - pixels
    low, high = rng.uniform(0, 40), rng.uniform(215, 255)
    return replace(views, pixels=(low + pixels * ((high - low) / 255)).to(torch.uint8))


def _again(rng: random.Random, item: Views | Example) -> Views | Example:
    if isinstance(item, Views):
        return recolour(rng, item)
    return replace(item, views=[recolour(rng, views) for views in item.views])


class Supply:
    """Starts the process that draws; ``fresh`` counts its batches."""

    def __init__(self, drawer: Drawer, rng: random.Random) -> None:
        context = mp.get_context("fork")
        self.queue: mp.Queue = context.Queue(4)
        self.process = context.Process(
            target=_draw, args=(drawer, self.queue, os.getpid()), daemon=True
        )
        self.rng = rng
        self.kept: deque[list] = deque(maxlen=KEPT)
        self.fresh = self.repeats = 0

    def __enter__(self) -> "Supply":
        self.process.start()
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.join()

    def take(self, answers: bool) -> list:
        """A batch of questions, or of labelled views."""
        wanted = Example if answers else Views
        if self.kept and not isinstance(self.kept[-1][0], wanted):
            self.kept.clear()
        while True:
            may_repeat = (
                len(self.kept) >= LEAST_KEPT
                and self.repeats < MOST_REPEATS * self.fresh
            )
            try:
                batch = self._next(wait=not may_repeat)
            except queue.Empty:
                self.repeats += 1
                batch = self.rng.choice(self.kept)
                return [_again(self.rng, item) for item in batch]
            if isinstance(batch[0], wanted):
                self.fresh += 1
                self.kept.append(batch)
                return list(batch)

    def _next(self, wait: bool) -> list:
        """The next batch that was drawn.

        Raises:
            queue.Empty: There is none yet.
            RuntimeError: The process that draws has ended.
        """
        while True:
            try:
                return pickle.loads(self.queue.get(block=wait, timeout=10))
            except queue.Empty:
                if not self.process.is_alive():
                    raise RuntimeError("The process that draws has ended.") from None
                if not wait:
                    raise
