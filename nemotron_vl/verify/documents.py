# SPDX-License-Identifier: Apache-2.0
"""Drawn documents, each with a question and the one right answer.

All choices come from a seed: the same seed and version of Pillow give the same images.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..checkpoints.questions import ask
from ..images.drawn import draw_text

_INK, _RULE = "black", "grey"
_NUMBER_ONLY = "Answer with the number only."
_WORD_ONLY = "Answer with one word only."

_COMPANIES = ("Alder Tools", "Birch Paper", "Cedar Foods", "Dahlia Print", "Elm Optics")
_ITEMS = ("bolts", "cables", "chairs", "desks", "filters", "hinges", "lamps", "valves")
_CITIES = ("Bergen", "Cadiz", "Dublin", "Graz", "Lyon", "Oslo", "Porto", "Turin")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August")
_COLOURS = ("steelblue", "darkorange", "seagreen", "indianred", "slategrey", "orchid")


class Question(NamedTuple):
    """A question about images.

    Args:
        kind: Kind of document.
        images: RGB, in their order.
        text: The question.
        answer: The right answer.
    """

    kind: str
    images: list[Image.Image]
    text: str
    answer: str


def draw_documents(count: int, seed: int = 0) -> list[Question]:
    """Questions about letters, invoices, tables and charts in turn."""
    rng = random.Random(f"documents {seed}")
    kinds: Sequence[Callable[[random.Random], Question]]
    kinds = (_letter, _invoice, _table, _chart)
    return [kinds[number % len(kinds)](rng) for number in range(count)]


def draw_numbers(count: int, seed: int = 0) -> list[Question]:
    """The questions that the embedded checkpoint was trained for."""
    rng = random.Random(f"numbers {seed}")
    kinds = (_one_line, _one_of_lines, _two_images, _count, _first)
    return [kinds[number % len(kinds)](rng) for number in range(count)]


# Documents


def _page(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width, height), "white")
    return page, ImageDraw.Draw(page)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _letter(rng: random.Random) -> Question:
    code = f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"
    lines = (
        rng.choice(_COMPANIES),
        "",
        f"{rng.choice(_CITIES)}, {rng.randint(1, 28)} {rng.choice(_MONTHS)} 2025",
        "",
        f"Reference: {code}",
        "",
        "Dear customer,",
        f"we have sent your order of {rng.randint(2, 90)} {rng.choice(_ITEMS)}.",
        "Please quote the reference when you write to us.",
        "",
        "Kind regards",
    )
    page, pen = _page(1000, 800)
    for row, line in enumerate(lines):
        pen.text((80, 60 + 60 * row), line, _INK, _font(36))
    question = f"What is the reference of this letter? {_NUMBER_ONLY}"
    return Question("letter", [page], question, code)


def _invoice(rng: random.Random) -> Question:
    number, items = str(rng.randint(10000, 99999)), rng.sample(_ITEMS, 4)
    counts = [rng.randint(2, 40) for _ in items]
    cents = [count * rng.randint(100, 2000) for count in counts]
    page, pen = _page(1000, 1000)
    pen.text((80, 60), rng.choice(_COMPANIES), _INK, _font(56))
    pen.text((80, 160), f"Invoice {number}", _INK, _font(40))
    columns = (80, 500, 700)
    rows = [("item", "quantity", "amount")]
    rows += [
        (item, str(count), f"{cent / 100:.2f}")
        for item, count, cent in zip(items, counts, cents, strict=True)
    ]
    total = f"{sum(cents) / 100:.2f}"
    rows.append(("Total", "", total))
    for row, cells in enumerate(rows):
        top = 260 + 90 * row
        pen.line((80, top - 12, 920, top - 12), _RULE, 2)
        for left, cell in zip(columns, cells, strict=True):
            pen.text((left, top), cell, _INK, _font(40))
    asked = rng.randrange(len(items))
    return Question(
        "invoice",
        [page],
        *rng.choice(
            (
                (f"What is the total of this invoice? {_NUMBER_ONLY}", total),
                (f"What is the number of this invoice? {_NUMBER_ONLY}", number),
                (
                    f"What is the quantity of {items[asked]}? {_NUMBER_ONLY}",
                    str(counts[asked]),
                ),
            )
        ),
    )


def _table(rng: random.Random) -> Question:
    cities, months = rng.sample(_CITIES, 5), rng.sample(_MONTHS, 3)
    values = [[str(rng.randint(10, 999)) for _ in months] for _ in cities]
    lines = [[city, *cells] for city, cells in zip(cities, values, strict=True)]
    page, pen = _page(1100, 700)
    for row, cells in enumerate([["", *months], *lines]):
        top = 50 + 100 * row
        pen.line((50, top + 75, 1050, top + 75), _RULE, 2)
        for column, cell in enumerate(cells):
            pen.text((70 + 250 * column, top), cell, _INK, _font(44))
    row, column = rng.randrange(len(cities)), rng.randrange(len(months))
    question = f"What is the value of {cities[row]} in {months[column]}? {_NUMBER_ONLY}"
    return Question("table", [page], question, values[row][column])


def _chart(rng: random.Random) -> Question:
    cities = rng.sample(_CITIES, 5)
    values = rng.sample(range(10, 100), len(cities))
    page, pen = _page(1100, 800)
    pen.text((60, 30), "Orders", _INK, _font(48))
    floor = 700
    pen.line((60, floor, 1050, floor), _RULE, 3)
    for place, (city, value) in enumerate(zip(cities, values, strict=True)):
        left, top = 90 + 195 * place, floor - 5 * value
        pen.rectangle((left, top, left + 130, floor), _COLOURS[place])
        pen.text((left + 65, top - 6), str(value), _INK, _font(38), anchor="mb")
        pen.text((left + 65, floor + 12), city, _INK, _font(38), anchor="mt")
    asked = rng.choice(cities)
    highest = cities[values.index(max(values))]
    return Question(
        "chart",
        [page],
        *rng.choice(
            (
                (f"Which city has the highest bar? {_WORD_ONLY}", highest),
                (
                    f"How many orders does {asked} have? {_NUMBER_ONLY}",
                    str(values[cities.index(asked)]),
                ),
            )
        ),
    )


# Numbers


def _text(rng: random.Random, longest: int = 6) -> str:
    """A price, a time, a date or a number of at most this many characters."""
    forms = (
        str(rng.randint(0, 99999)),
        f"${rng.randint(1, 99)}.{rng.randint(0, 99):02}",
        f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}",
        f"{rng.randint(1, 28)}/{rng.randint(1, 12)}",
        f"{rng.randint(100, 999)}-{rng.randint(10, 99)}",
    )
    return rng.choice([form for form in forms if len(form) <= longest])


def _one_line(rng: random.Random) -> Question:
    text = _text(rng)
    return Question("one line", [draw_text(text)], *ask("read", [text]))


def _one_of_lines(rng: random.Random) -> Question:
    lines = [_text(rng) for _ in range(rng.randint(2, 3))]
    asked = ask("lines", lines, rng.randrange(len(lines)))
    return Question("several lines", [draw_text(*lines)], *asked)


def _two_images(rng: random.Random) -> Question:
    texts = [_text(rng) for _ in range(2)]
    return Question("two images", [draw_text(t) for t in texts], *ask("both", texts))


def _count(rng: random.Random) -> Question:
    text = _text(rng)
    return Question("count", [draw_text(text)], *ask("count", [text]))


def _first(rng: random.Random) -> Question:
    text = _text(rng)
    return Question("first character", [draw_text(text)], *ask("first", [text]))
