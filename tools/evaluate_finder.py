#!/usr/bin/env python3
"""Measure how well tiny checkpoints find and rank pages, on the engine.

    tools/fonts.sh build/fonts
    python tools/evaluate_finder.py build/finder

Each of 1,000 pages shows a number, and is to be found by it. Four sets: "pillow" and
"generator" are drawn by drawn_text, the latter with typefaces that the training does
not use. "near" has numbers that differ in a character or two, and "elsewhere" is drawn
by Cairo in all styles. With a checkpoint that ranks, the first ten pages are ranked.
--write puts the table into a page between ``<!-- evaluate_finder -->`` and
``<!-- end -->``.
"""

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import numpy as np

from tiny_finder.evaluation import draw_set, likeness, rank, recall

SETS = ("pillow", "generator", "near", "elsewhere")
FIRST = 10  # pages that are ranked


def start(checkpoint: Path, dtype: str):
    from vllm import LLM

    return LLM(
        str(checkpoint),
        dtype=dtype,
        runner="pooling",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=32,
    )


def write(page: Path, table: str) -> None:
    """Replace the table of a page."""
    pattern = r"(<!-- evaluate_finder -->\n\n).*?(\n\n<!-- end -->)"
    text, count = re.subn(pattern, rf"\1{table}\2", page.read_text(), flags=re.DOTALL)
    assert count == 1, page
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, help="with embed, and rerank if it is to rank"
    )
    parser.add_argument("--fonts", type=Path, default=Path("build/fonts"))
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--count", type=int, default=1000, help="pages of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    sets = {n: draw_set(n, args.fonts, args.count, args.seed) for n in args.sets}
    llm = start(args.folder / "embed", args.dtype)
    similar = {name: likeness(llm, pages) for name, pages in sets.items()}
    del llm
    columns = ["pages", "recall@1", "recall@5"]
    ranker = None
    if (args.folder / "rerank").exists():
        ranker = start(args.folder / "rerank", args.dtype)
        columns.append(f"recall@1, the first {FIRST} ranked")
    rows = [columns, ["---"] * len(columns)]
    for name, pages in sets.items():
        found = np.argsort(-similar[name], axis=1)
        figures = [recall(found, 1), recall(found, 5)]
        if ranker:
            figures.append(recall(rank(ranker, pages, similar[name], FIRST), 1))
        rows.append([f"{name}, {len(pages):,}", *(f"{x:.1%}" for x in figures)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    print(table)
    if args.write:
        write(args.write, table)


if __name__ == "__main__":
    main()
