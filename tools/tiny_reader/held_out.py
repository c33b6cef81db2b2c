"""Held-out images, drawn by Cairo: other code, fonts, strings and photographs.

They measure reading rather than the generator of the training images. The same seed,
fonts and versions give the same images. Needs Debian's libcairo2.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from drawn_text import (
    LONGEST_OF_BOTH,
    Drawing,
    Question,
)
from nemotron_vl.checkpoints.questions import SINGLE_LINE, questions_about

from .cairo_painter import STYLES, Painter
from .strings import MAX_LENGTH, SEVEN_SEGMENT

KINDS = {"read": 0.7, "lines": 0.14, "both": 0.06, "count": 0.05, "first": 0.05}


@dataclass
class HeldOut:
    """A question, and what the tables of the evaluation group it by."""

    question: Question
    facts: dict[str, Any]


def _digits(rng: random.Random, count: int) -> str:
    return "".join(str(rng.randrange(10)) for _ in range(count))


def _string(rng: random.Random, longest: int, marks: bool = True) -> str:
    """A number, price, date, time, rate or code of 1 to ``longest`` characters."""
    n = rng.randint(1, 4)
    forms: list[Callable[[], str]] = [
        lambda: _digits(rng, rng.randint(1, 8)),
        lambda: _digits(rng, rng.randint(2, 6)),
        lambda: f"{_digits(rng, 4)}-{_digits(rng, 2)}",
        lambda: f"{rng.randrange(24):02}:{rng.randrange(60):02}",
    ]
    if marks:
        forms += [
            lambda: f"${_digits(rng, n)}.{_digits(rng, 2)}",
            lambda: f"{_digits(rng, n)}.{_digits(rng, 2)}",
            lambda: f"{_digits(rng, n)},{_digits(rng, 3)}",
            lambda: f"{rng.randint(1, 12)}/{rng.randint(1, 31)}",
            lambda: (
                f"{rng.randint(1, 31):02}.{rng.randint(1, 12):02}.{_digits(rng, 2)}"
            ),
            lambda: f"{rng.randint(1, 12)}/{rng.randint(1, 31)}/{_digits(rng, 4)}",
            lambda: f"-{_digits(rng, n)}.{_digits(rng, 1)}",
            lambda: f"{_digits(rng, rng.randint(1, 3))}%",
            lambda: f"{_digits(rng, 1)}.{_digits(rng, 1)}%",
        ]
    while True:
        text = rng.choice(forms)()
        if len(text) <= longest:
            return text


def draw_held_out(fonts: Path, count: int, seed: int = 0) -> list[HeldOut]:
    """Questions of all kinds about images of all styles.

    Args:
        fonts: Folder that tools/fonts.sh wrote.
        count: Questions.
        seed: Seed of all choices.
    """
    painter = Painter(fonts)
    rng = random.Random(f"drawn elsewhere {seed}")
    items = []
    for _ in range(count):
        (kind,) = rng.choices([*KINDS], [*KINDS.values()])
        (style,) = rng.choices([*STYLES], [*STYLES.values()])
        number = {"lines": rng.choice((2, 3)), "both": 2}.get(kind, 1)
        longest = LONGEST_OF_BOTH if kind == "both" else MAX_LENGTH
        marks = style != "seven segments"
        lines = [_string(rng, longest, marks) for _ in range(number)]
        groups = [[line] for line in lines] if kind == "both" else [lines]
        drawn = [painter.draw(rng, group, style) for group in groups]
        drawings = [
            Drawing(image, group, [])
            for (image, _), group in zip(drawn, groups, strict=True)
        ]
        asked = questions_about(kind, lines)
        if kind == "lines":
            chosen = rng.randrange(number + 1) - 1  # -1 is the whole text
        elif kind == "both":
            chosen = 0
        else:
            chosen = SINGLE_LINE.index(kind)
        facts = drawn[0][1] | {
            "style": style,
            "length": max(map(len, lines)),
            "lines": number if kind != "both" else 1,
        }
        items.append(HeldOut(Question(kind, drawings, [asked[chosen]]), facts))
    return items


def painted(fonts: Path, texts: list[str], seed: int = 0) -> list[Image.Image]:
    """An image of each text, in all styles that have its characters.

    Args:
        fonts: Folder that tools/fonts.sh wrote.
        texts: One line each.
        seed: Seed of all choices.
    """
    painter = Painter(fonts)
    rng = random.Random(f"painted {seed}")
    images = []
    for text in texts:
        shares = dict(STYLES)
        if set(text) - set(SEVEN_SEGMENT):
            del shares["seven segments"]
        (style,) = rng.choices([*shares], [*shares.values()])
        images.append(painter.draw(rng, [text], style)[0].convert("RGB"))
    return images
