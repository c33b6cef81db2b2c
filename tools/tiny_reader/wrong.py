"""A sheet of images that were read wrongly, with a guess why."""

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .held_out import HeldOut
from .tables import Record

SHOWN = 10
COLUMNS, CELL = 5, (240, 170)  # images beside each other, and pixels of each
LOOK_ALIKE = ("17", "38", "56", "68", "08", "69", ".,", ":.", "-.", "27", "35", "49")


def guess(record: Record) -> str:
    """The likeliest cause, from the facts and from what differs."""
    facts, truth, answer = record.facts, record.truth, record.answer
    causes = []
    if facts.get("style") in ("seven segments", "stencil", "photograph", "blurred"):
        causes.append(facts["style"])
    if facts.get("contrast", 1) < 0.35:
        causes.append("little contrast")
    if facts.get("height", 99) < 18:
        causes.append("small characters")
    if abs(facts.get("angle", 0)) > 4:
        causes.append("rotated")
    if facts.get("margin", 1) < 0.05:
        causes.append("ink touches the edge")
    if facts["kind"] == "count":
        causes.append("miscounted")
    elif facts["kind"] == "first":
        causes.append("another character")
    elif len(answer) < len(truth):
        one = len(answer) == len(truth) - 1
        causes.append("a character is missed" if one else "characters are missed")
    elif len(answer) > len(truth):
        one = len(answer) == len(truth) + 1
        causes.append("a character too many" if one else "characters too many")
    else:
        pairs = {"".join(sorted(p)) for p in zip(truth, answer, strict=True)}
        alike = {"".join(sorted(pair)) for pair in LOOK_ALIKE}
        if pairs & alike:
            causes.append("similar shapes")
    return ", ".join(causes) or "unknown"


def show(wrong: list[tuple[HeldOut, Record]], file: Path, seed: int) -> str:
    """Draw ``SHOWN`` of them into a file, chosen at random, and return a table.

    The page that shows the table is beside the file.
    """
    rng = random.Random(f"wrong {seed}")
    chosen = rng.sample(wrong, min(SHOWN, len(wrong)))
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL[0], max(1, rows) * CELL[1]), "lightgrey")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    lines = [f"![Images whose answers are wrong]({file.name})", ""]
    lines.append("| | question | style | truth | answer | guess |")
    lines.append("|---|---|---|---|---|---|")
    for number, (item, record) in enumerate(chosen):
        left, top = number % COLUMNS * CELL[0], number // COLUMNS * CELL[1]
        images = item.question.images  # below each other
        height = (CELL[1] - 26) // len(images)
        for place, image in enumerate(images):
            small = image.copy()
            small.thumbnail((CELL[0] - 10, height - 4))
            sheet.paste(small, (left + 5, top + 25 + place * height))
        pen.text((left + 5, top + 4), str(number + 1), "black", font)
        truth, answer = (
            text.replace("\n", " / ") for text in (record.truth, record.answer)
        )
        question, style = item.question.turns[0][0], record.facts.get("style")
        lines.append(
            f"| {number + 1} | {question} | {style or 'generator'} "
            f"| `{truth}` | `{answer}` | {guess(record)} |"
        )
    sheet.save(file, optimize=True)
    return "\n".join(lines)
