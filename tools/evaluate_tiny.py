#!/usr/bin/env python3
"""Measure how well a checkpoint reads drawn text, in the reference and in the engine.

    tools/fonts.sh build/fonts
    python tools/evaluate_tiny.py build/training/checkpoint --engine float32

Draws 2,000 questions with fonts that the training does not use, answers them by greedy
decoding and prints tables in Markdown.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch

from drawn_text import KINDS, PILLOW_FONT, Question, find_fonts, make_question
from vllm_nemotron_vl.entrypoints.nemotron_vl.reference import Reference

# Tokens that the engine and the reference may write beyond the expected answer.
SPARE_TOKENS = 3


def draw_questions(
    model: Reference, fonts: list, count: int, seed: int
) -> list[Question]:
    """Questions of all kinds, in the proportions of the training."""
    rng = random.Random(f"held out {seed}")
    kinds = rng.choices([*KINDS], [*KINDS.values()], k=count)
    return [make_question(rng, fonts, model, kind) for kind in kinds]


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
        _, ids, _ = model.answer(question.prompt(), question.pictures, limit(question))
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
                "multi_modal_data": {"image": question.pictures},
                "mm_processor_kwargs": {"resize": resize},
            }
            for question in questions
        ],
        [SamplingParams(temperature=0, max_tokens=limit(q)) for q in questions],
    )
    return [to_text(model, list(output.outputs[0].token_ids)) for output in outputs]


def accuracy(rights: list[bool]) -> str:
    return f"{100 * sum(rights) / len(rights):.1f} % of {len(rights)}"


def print_table(title: str, groups: dict) -> None:
    print(f"\n| {title} | right |\n|---|---|")
    for name in sorted(groups):
        print(f"| {name} | {accuracy(groups[name])} |")


def print_tables(model: Reference, questions: list[Question], answers: list[str]):
    by_kind, by_length, by_tiles = (defaultdict(list) for _ in range(3))
    spanning = []
    for question, answer in zip(questions, answers, strict=True):
        right = answer == question.turns[0][1]
        by_kind[question.kind].append(right)
        if question.kind != "read":
            continue
        (drawing,) = question.drawings
        columns, rows = model.choose_grid(*drawing.picture.size)
        by_length[len(drawing.lines[0])].append(right)
        by_tiles[columns * rows].append(right)
        first, last = drawing.characters[0], drawing.characters[-1]
        ends = (first.x - first.half_width, last.x + last.half_width)
        left, right_end = (int(x * columns / drawing.picture.width) for x in ends)
        if left != right_end:
            spanning.append(right)
    print_table("question", by_kind)
    print_table("characters of a single line", by_length)
    print_table("tiles without the thumbnail", by_tiles)
    print(f"\nSingle lines that span several tiles: {accuracy(spanning)}")


def print_row(
    name: str, found: list[str], expected: list[str], truths: list[str], start: float
) -> None:
    right = accuracy([a == t for a, t in zip(found, truths, strict=True)])
    same = accuracy([a == b for a, b in zip(found, expected, strict=True)])
    seconds = time.time() - start
    print(f"| {name} | {right} | {same} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="folder of the checkpoint")
    parser.add_argument("--fonts", type=Path, default=Path("build/fonts/held_out"))
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
    fonts = PILLOW_FONT if args.pillow_font else find_fonts(args.fonts)
    questions = draw_questions(model, fonts, args.count, args.seed)
    start = time.time()
    with torch.inference_mode():
        answers = {"reference": answer_with_reference(model, questions)}
    print_tables(model, questions, answers["reference"])
    truths = [question.turns[0][1] for question in questions]
    print("\n| answered by | right | same as the reference | seconds |")
    print("|---|---|---|---|")
    print_row("reference", answers["reference"], answers["reference"], truths, start)
    for name in args.engine:
        from vllm import LLM

        given = name.split(":")
        dtype, resize, folder = given + ["", "exact", str(args.model)][len(given) :]
        llm = LLM(
            folder,
            dtype=dtype,
            enforce_eager=True,
            max_model_len=1024,
            limit_mm_per_prompt={"image": 2},
        )
        start = time.time()
        answers[name] = answer_with_engine(llm, model, questions, resize)
        llm.llm_engine.engine_core.shutdown()
        del llm
        print_row(name, answers[name], answers["reference"], truths, start)
    if args.out:
        args.out.write_text(
            json.dumps(
                [
                    {"kind": q.kind, "question": q.turns[0][0], "truth": truth}
                    | {name: found[i] for name, found in answers.items()}
                    for i, (q, truth) in enumerate(zip(questions, truths, strict=True))
                ],
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
