"""Batches for the training, which all processors draw before the steps that use them.

The steps do not run meanwhile: beside another process, each of them waits for its
slower thread, which costs more than the drawing.
"""

import ctypes
import multiprocessing as mp
import os
import pickle
import signal
from collections import deque

import torch

from .batches import Drawer, Stage

AT_ONCE = 4  # batches of each process
PR_SET_PDEATHSIG = 1  # of Linux' prctl

_drawer: Drawer


def _start(drawer: Drawer, training: int) -> None:
    global _drawer
    # End with the training's process, also if that is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != training:
        os._exit(1)
    torch.set_num_threads(1)
    _drawer = drawer


def _draw(seed: str, stage: Stage) -> bytes:
    return pickle.dumps(_drawer.batch(seed, stage))  # by value, no shared memory


class Supply:
    """Starts the processes that draw.

    Args:
        drawer: Draws a batch.
        seed: Seed of all batches.
        processes: That draw at a time.
    """

    def __init__(self, drawer: Drawer, seed: int, processes: int) -> None:
        self.seed, self.count = seed, AT_ONCE * processes
        context = mp.get_context("fork")
        self.pool = context.Pool(processes, _start, (drawer, os.getpid()))
        self.drawn: deque[bytes] = deque()
        self.answers: bool | None = None

    def __enter__(self) -> "Supply":
        return self

    def __exit__(self, *_) -> None:
        self.pool.terminate()
        self.pool.join()

    def draw(self, step: int, stage: Stage) -> None:
        """Draw the batches of a step and of those behind it."""
        self.answers = stage.answers
        work = [(f"{self.seed} {step + n}", stage) for n in range(self.count)]
        self.drawn = deque(self.pool.starmap(_draw, work, chunksize=1))

    def take(self, step: int, stage: Stage) -> list:
        """The batch of a step: questions, or labelled views.

        It is of the ``stage`` at the time of drawing, which is a few steps earlier.
        """
        if not self.drawn or self.answers != stage.answers:
            self.draw(step, stage)
        return pickle.loads(self.drawn.popleft())
