#!/usr/bin/env python3
"""Measure how well a checkpoint reads drawn text, in the reference and in the engine.

    tools/fonts.sh build/fonts
    python tools/evaluate_tiny.py build/training/checkpoint --engine float32

Draws 2,000 questions with fonts that the training does not use, answers them by greedy
decoding and prints tables in Markdown. With --elsewhere, Cairo draws them, in all
styles (tools/tiny_reader/held_out.py). --write puts the tables into a page between
``<!-- evaluate_tiny: generator -->`` (or ``elsewhere``) and ``<!-- end -->``.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch

from drawn_text import KINDS, Drawing, Question, make_question
from nemotron_vl.verify.reference import Reference
from tiny_reader import tables, wrong
from tiny_reader.alike import in_common
from tiny_reader.held_out import HeldOut, draw_held_out
from tiny_reader.views import HeldOutTiler
from typefaces import PILLOW_FONT, find_fonts

# Tokens that the engine and the reference may write beyond the expected answer.
SPARE_TOKENS = 3


def draw_questions(fonts: list, count: int, seed: int) -> list[Question]:
    """Questions of all kinds by the generator of drawn_text."""
    rng = random.Random(f"held out {seed}")
    kinds = rng.choices([*KINDS], [*KINDS.values()], k=count)
    tiler = HeldOutTiler(max_tiles=12)
    return [make_question(rng, fonts, tiler, kind) for kind in kinds]


def refuse_training_fonts(fonts: Path, *folders: str) -> None:
    """End the program if the training has a typeface of the ``folders``."""
    for folder in folders:
        if pairs := in_common(fonts / folder, fonts / "training"):
            sys.exit(f"The training has typefaces of {folder}: {pairs}.")


def draw_items(args: argparse.Namespace) -> list[HeldOut]:
    """The questions that the command line selects."""
    if args.elsewhere:
        refuse_training_fonts(args.fonts, "held_out", "elsewhere")
        return draw_held_out(args.fonts, args.count, args.seed)
    fonts = PILLOW_FONT
    if not args.pillow_font:
        refuse_training_fonts(args.fonts, "held_out")
        fonts = find_fonts(args.fonts / "held_out")
    drawn = draw_questions(fonts, args.count, args.seed)
    return [HeldOut(question, {}) for question in drawn]


def limit(question: Question) -> int:
    """Most tokens of an answer; every character is one token."""
    return len(question.turns[0][1]) + SPARE_TOKENS


def to_text(model: Reference, ids: list[int]) -> str:
    """The text of an answer, up to its end token."""
    (stop,) = model.tokenizer.encode("<|eot_id|>", add_special_tokens=False)
    return model.tokenizer.decode(ids[: ids.index(stop)] if stop in ids else ids)


def answer_with_reference(model: Reference, questions: list[Question]) -> list[str]:
    answers = []
    for number, question in enumerate(questions, 1):
        _, ids, _ = model.answer(question.prompt(), question.images, limit(question))
        answers.append(to_text(model, ids))
        if number % 200 == 0:
            print(f"reference: {number} of {len(questions)}", file=sys.stderr)
    return answers


def answer_with_engine(
    llm, model: Reference, questions: list[Question], resize: str = "exact"
) -> list[str]:
    """Answer all questions at once. The reference uses "exact" pixels."""
    from vllm import SamplingParams

    outputs = llm.generate(
        [
            {
                "prompt": question.prompt(),
                "multi_modal_data": {"image": question.images},
                "mm_processor_kwargs": {"resize": resize},
            }
            for question in questions
        ],
        [SamplingParams(temperature=0, max_tokens=limit(q)) for q in questions],
    )
    return [to_text(model, list(output.outputs[0].token_ids)) for output in outputs]


def spans_tiles(model: Reference, drawing: Drawing) -> bool:
    """Whether the ends of a line are in different columns of tiles."""
    columns, _ = model.choose_grid(*drawing.image.size)
    first, last = drawing.characters[0], drawing.characters[-1]
    ends = (first.x - first.half_width, last.x + last.half_width)
    left, right = (int(x * columns / drawing.image.width) for x in ends)
    return left != right


def records(
    model: Reference, items: list[HeldOut], answers: list[str]
) -> list[tables.Record]:
    found = []
    for item, answer in zip(items, answers, strict=True):
        columns, rows = model.choose_grid(*item.question.images[0].size)
        facts = item.facts | {"kind": item.question.kind, "tiles": columns * rows}
        drawing = item.question.drawings[0]
        if "length" not in facts:
            facts["length"] = len(drawing.lines[0])
        if drawing.characters:
            facts["spans tiles"] = spans_tiles(model, drawing)
        found.append(tables.Record(facts, item.question.turns[0][1], answer))
    return found


class EngineChoice(NamedTuple):
    """What ``--engine`` selects; an empty folder is that of the checkpoint."""

    dtype: str
    resize: str = "exact"
    folder: str = ""

    @property
    def name(self) -> str:
        """Of a row of the table."""
        model = f"{Path(self.folder).name} in " if self.folder else ""
        resize = "" if self.resize == "exact" else f', resize "{self.resize}"'
        return f"engine, {model}{self.dtype}{resize}"


def engine_row(
    name: str, found: list[str], expected: list[str], truths: list[str], start: float
) -> str:
    right = tables.accuracy([a == t for a, t in zip(found, truths, strict=True)])
    same = tables.accuracy([a == b for a, b in zip(found, expected, strict=True)])
    return f"| {name} | {right} | {same} | {time.time() - start:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("--fonts", type=Path, default=Path("build/fonts"))
    parser.add_argument(
        "--elsewhere", action="store_true", help="images that Cairo draws"
    )
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the tables into"
    )
    parser.add_argument(
        "--wrong", type=Path, metavar="IMAGE", help="show ten wrong answers"
    )
    parser.add_argument("--pillow-font", action="store_true", help="use only Pillow's")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--engine",
        nargs="*",
        default=[],
        metavar="DTYPE[:RESIZE[:FOLDER]]",
        help='such as float32; float32:fast for another recipe than "exact"; '
        "float32:exact:FOLDER for another checkpoint, such as a quantised one",
    )
    parser.add_argument("--out", type=Path, help="file for every question and answer")
    args = parser.parse_args()

    model = Reference.load(args.model)
    items = draw_items(args)
    questions = [item.question for item in items]
    start = time.time()
    with torch.inference_mode():
        answers = {"reference": answer_with_reference(model, questions)}
    found = records(model, items, answers["reference"])
    text = tables.by_category(found)
    print(text, flush=True)
    truths = [question.turns[0][1] for question in questions]
    rows = [
        "| answered by | right | same as the reference | seconds |",
        "|---|---|---|---|",
        engine_row("reference", *[answers["reference"]] * 2, truths, start),
    ]
    print("\n".join(["", *rows]), flush=True)
    for name in args.engine:
        from vllm import LLM

        choice = EngineChoice(*name.split(":"))
        llm = LLM(
            choice.folder or str(args.model),
            dtype=choice.dtype,
            enforce_eager=True,
            max_model_len=1024,
            limit_mm_per_prompt={"image": 2},
        )
        start = time.time()
        answers[name] = answer_with_engine(llm, model, questions, choice.resize)
        llm.llm_engine.engine_core.shutdown()
        del llm
        row = engine_row(
            choice.name, answers[name], answers["reference"], truths, start
        )
        rows.append(row)
        print(row, flush=True)
    text = "\n".join([text, "", *rows])
    if args.wrong:
        shown = [(item, r) for item, r in zip(items, found, strict=True) if not r.right]
        text += "\n\n" + wrong.show(shown, args.wrong, args.seed)
    if args.write:
        name = "elsewhere" if args.elsewhere else "generator"
        tables.write(args.write, name, text)
    if args.out:
        args.out.write_text(
            json.dumps(
                [
                    item.facts
                    | {"kind": item.question.kind, "truth": truth}
                    | {"question": item.question.turns[0][0]}
                    | {name: found[i] for name, found in answers.items()}
                    for i, (item, truth) in enumerate(zip(items, truths, strict=True))
                ],
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
