"""The strings that the embedded checkpoint learns to read, and questions about them."""

import random

import typefaces
from drawn_text import shuffled
from nemotron_vl.checkpoints.questions import SINGLE_LINE, questions_about

CHARACTERS = f"{typefaces.CHARACTERS}%"
MAX_LENGTH = 10
SEVEN_SEGMENT = "0123456789.:-"  # what such displays show

# Kinds of questions and how often each is asked. "frames": of a video, a line in each.
KINDS = {
    "read": 0.5,
    "count": 0.06,
    "first": 0.06,
    "lines": 0.2,
    "both": 0.08,
    "frames": 0.1,
}

# Mostly up to 8 characters, which fit a thumbnail best.
_LENGTHS = {1: 2, 2: 3, 3: 4, 4: 4, 5: 5, 6: 5, 7: 5, 8: 5, 9: 1, 10: 1}


def _number(rng: random.Random, digits: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(digits))


def _is_text(text: str) -> bool:
    """Whether punctuation stands where numbers, dates, prices and codes have it."""
    padded = f" {text} "
    return all(
        c.isdigit()
        or (c in ".,:/-$" and before.isdigit() and after.isdigit())
        or (c in "-$" and before == " " and after.isdigit())
        or (c == "%" and before.isdigit() and after == " ")
        or (c == "$" and len(text) == 1)
        for before, c, after in zip(padded, text, padded[2:], strict=False)
    )


def draw_string(rng: random.Random, longest: int = MAX_LENGTH) -> str:
    """1 to ``longest`` characters: numbers, prices, dates, times, rates and codes."""
    lengths = {n: weight for n, weight in _LENGTHS.items() if n <= longest}
    (length,) = rng.choices([*lengths], [*lengths.values()])
    marks = [c for c in CHARACTERS if not c.isdigit()]
    if length == 1 and rng.random() < 0.9:
        return _number(rng, 1)
    share = rng.choice((0.0, 0.15, 0.25, 0.35))
    while True:
        text = "".join(
            rng.choice(marks) if rng.random() < share else rng.choice("0123456789")
            for _ in range(length)
        )
        if _is_text(text):
            return text


def ask(rng: random.Random, kind: str, lines: list[str]) -> list[tuple[str, str]]:
    """Questions about the lines of an image, of two or of a video, with answers.

    The first is of the ``kind``; the others follow in any order.
    """
    if kind == "both":
        return questions_about(kind, lines)
    if kind in ("lines", "frames"):
        asked = questions_about("lines", lines)
        head = rng.choice([len(asked) - 1, rng.randrange(len(asked))])
    else:
        asked = questions_about(kind, lines)
        head = SINGLE_LINE.index(kind)
    return shuffled(rng, asked, head)
