# SPDX-License-Identifier: Apache-2.0
"""The questions that the embedded checkpoint was trained for, and those of the demo."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..images.drawn import draw_text
from .embedded import TINY

COUNT = 20

SINGLE_LINE = ("read", "count", "first")  # kinds of questions about one line

# Of the questions; the others read a single line.
_KINDS = ("lines", "lines", "lines", "both", "count", "first")

_PAPERS = ("white", "whitesmoke", "wheat", "lightblue", "honeydew", "gold")
_INKS = ("black", "midnightblue", "darkred", "darkslategray", "indigo")


@dataclass
class DemoQuestion:
    """A question about one image or two, and the expected answer.

    An image that the user gave has a ``file``, and no ``truth``.
    """

    images: dict[str, Image.Image]  # by name
    text: str
    truth: str | None
    file: Path | None = None


def questions_about(kind: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """All that can be asked about lines of text, with the answers.

    Args:
        kind: ``both`` (a line in each of two images), ``lines`` (several in an image:
            each of them, then the text), or one of ``SINGLE_LINE``, in that order.
        lines: From top to bottom.
    """
    text = "\n".join(lines)
    if kind == "both":
        return [("Read both.", text)]
    if kind == "lines":
        each = [(f"Read line {i}.", line) for i, line in enumerate(lines, 1)]
        return [*each, ("Read the text.", text)]
    return [
        ("Read the text.", text),
        ("How many characters are there?", str(len(text))),
        ("What is the first character?", text[0]),
    ]


def ask(kind: str, lines: Sequence[str], line: int = 0) -> tuple[str, str]:
    """One of `questions_about`, with the answer.

    Args:
        kind: As there.
        lines: As there.
        line: For ``lines``, the one that is asked for, from 0.
    """
    place = SINGLE_LINE.index(kind) if kind in SINGLE_LINE else line
    return questions_about(kind, lines)[place]


def _string(rng: random.Random, longest: int) -> str:
    """A number, price, time, date or code; only a "$" stands before its digits."""
    digits = "".join(rng.choice("0123456789") for _ in range(longest))
    length = rng.randint(2, longest)
    mark = rng.choice(["", "", *".,:-/"])
    if not mark or length < 3:
        return digits[:length]
    place = rng.randint(1, length - 2)
    text = digits[:place] + mark + digits[place + 1 : length]
    return f"${text[1:]}" if mark == "." and place > 1 else text


def _draw(rng: random.Random, *lines: str) -> Image.Image:
    ink, paper = rng.choice(_INKS), rng.choice(_PAPERS)
    if rng.random() < 0.3:
        ink, paper = paper, ink
    size = rng.randint(20, 96)
    # Of as many pixels as people leave, on each side.
    margins = [rng.randint(2, 60) for _ in range(4)]
    return draw_text(*lines, ink=ink, paper=paper, font_size=size, margins=margins)


def draw_questions(seed: int) -> Iterator[DemoQuestion]:
    """``COUNT`` questions. Texts, sizes, margins and colours are drawn by the seed."""
    rng = random.Random(f"demo {seed}")
    kinds = [*_KINDS, *["read"] * (COUNT - len(_KINDS))]
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        name = f"image_{number:02}"
        if kind == "both":
            texts = [_string(rng, 6) for _ in range(2)]
            names = f"{name}a", f"{name}b"
            images = {n: _draw(rng, t) for n, t in zip(names, texts, strict=True)}
            yield DemoQuestion(images, *ask(kind, texts))
            continue
        count = rng.randint(2, 3) if kind == "lines" else 1
        lines = [_string(rng, TINY.longest) for _ in range(count)]
        line = rng.randint(1, count)
        asked = ask(kind, lines, line - 1)
        yield DemoQuestion({name: _draw(rng, *lines)}, *asked)


def trimmed(text: str) -> str:
    """A text without what cannot be seen: space around it and at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.strip().split("\n"))


def ask_about(
    texts: Sequence[str], images: Sequence[tuple[Path, Image.Image]]
) -> list[DemoQuestion]:
    """Questions about what a user typed, which is drawn, and about images of files.

    Args:
        texts: As `trimmed` returns them, not empty.
        images: Files and what they show.
    """
    typed = [
        DemoQuestion(
            {f"text_{number}": draw_text(*text.split("\n"))}, "Read the text.", text
        )
        for number, text in enumerate(texts, 1)
    ]
    given = [
        DemoQuestion({f"given_{number}": image}, "Read the text.", None, file)
        for number, (file, image) in enumerate(images, 1)
    ]
    return typed + given


def untrained(text: str) -> str | None:
    """What of a text the embedded checkpoint was not trained for, or None."""
    lines = text.split("\n")
    unknown = sorted({c for c in text if c not in f"{TINY.characters}\n"})
    if unknown:
        return (
            "The checkpoint has never seen " + " ".join(repr(c) for c in unknown) + "."
        )
    if len(lines) > TINY.lines:
        return (
            f"The checkpoint was trained for {TINY.lines} lines at most, this has "
            f"{len(lines)}."
        )
    if not all(lines):
        return "The checkpoint was not trained for empty lines."
    longest = max(map(len, lines))
    if longest > TINY.longest:
        return (
            f"The checkpoint was trained for lines of {TINY.longest} characters at "
            f"most, this has {longest}."
        )
    return None
