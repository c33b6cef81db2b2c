#!/usr/bin/env python3
"""Measures how well pages are found, on a set of the form of ViDoRe and BEIR.

python tools/evaluate_search.py draw SET [--alike 10]
python tools/evaluate_search.py measure SET --url URL [--rerank URL] [--language L]

A set is a folder of Parquet files: corpus (corpus-id, image), queries (query-id, query)
and qrels (query-id, corpus-id, score), each in a folder of this name or of its own.
"""

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow as pa
import pyarrow.parquet as pq
from ir_measures import Qrel, R, ScoredDoc, nDCG

from nemotron_vl.checkpoints.tiler import Tiler
from nemotron_vl.documents.client import RERANK_KEY, connect, keys_of
from nemotron_vl.documents.pages import Drawing
from nemotron_vl.documents.process import PageProcess
from nemotron_vl.images.drawn import draw_text
from nemotron_vl.main import main
from nemotron_vl.search.asking import FoundPage, draw, rank
from nemotron_vl.search.embedding import find_embedder
from nemotron_vl.search.store import Store

MEASURES = [nDCG @ 5, R @ 1, R @ 5, R @ 10]
DEPTH = 100  # pages of a question that are measured


def draw_set(folder: Path, pages: int, alike: int = 1) -> None:
    """Write a set of drawn numbers. Each is a question, which one page answers.

    Args:
        folder: For the set.
        pages: Number of pages.
        alike: Size of the groups of numbers that differ in a character or two.
    """
    from tiny_finder.pages import almost

    chance = random.Random(0)
    numbers = iter(chance.sample(range(1_000_000), pages))
    found: dict[str, None] = {}
    while len(found) < pages:
        number = next(numbers)
        text = f"{number // 100:04}-{number % 100:02}"
        group = {text: None}
        while len(group) < alike:
            group[almost(chance, text)] = None
        found |= group
    texts = [*found][:pages]
    images = []
    with tempfile.TemporaryDirectory() as temporary:
        for text in texts:
            file = Path(temporary, "page.png")
            draw_text(text).save(file)
            images.append({"bytes": file.read_bytes(), "path": None})
    ids = [*range(pages)]
    for name, columns in {
        "corpus": {"corpus-id": ids, "image": images},
        "queries": {"query-id": ids, "query": texts},
        "qrels": {"query-id": ids, "corpus-id": ids, "score": [1] * pages},
    }.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / name / "test.parquet")


def rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a table of a set."""
    files = sorted((folder / name).rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder / name} has no Parquet files.")
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(64):
            for row in batch.to_pylist():  # ViDoRe 3 writes `corpus_id`
                yield {name.replace("_", "-"): value for name, value in row.items()}


def measure(
    folder: Path,
    url: str,
    rerank: str | None = None,
    candidates: int = 50,
    language: str | None = None,
) -> dict[str, float]:
    """The mean of each measure over the questions.

    Args:
        folder: Of the set.
        url: Server of the embedding model.
        rerank: Server of the ranking model.
        candidates: Pages of a question that it ranks.
        language: Of the questions; by default all of them.
    """
    queries = {
        str(row["query-id"]): row["query"]
        for row in rows(folder, "queries")
        if language in (None, row.get("language"))
    }
    qrels = [
        Qrel(str(row["query-id"]), str(row["corpus-id"]), row["score"])
        for row in rows(folder, "qrels")
        if str(row["query-id"]) in queries
    ]
    if not qrels:
        raise ValueError(f"{folder} has no questions in {language}.")
    with tempfile.TemporaryDirectory() as temporary:
        pages, index = Path(temporary, "pages"), str(Path(temporary, "index"))
        pages.mkdir()
        ids = []  # a dataset's id may be no name of a file
        for number, row in enumerate(rows(folder, "corpus")):
            ids.append(str(row["corpus-id"]))
            (pages / f"{number}.png").write_bytes(row["image"]["bytes"])
        if main(["index", str(pages), "--to", index, "--url", url]):
            raise RuntimeError("Not all pages are in the index.")
        store = Store.open(index)
        assert store is not None
        places = asyncio.run(search(store, queries, url, rerank, candidates))
    found = [one._replace(doc_id=ids[int(Path(one.doc_id).stem)]) for one in places]
    means = ir_measures.calc_aggregate(MEASURES, qrels, found)
    return {str(measure): means[measure] for measure in MEASURES}


async def search(
    store: Store,
    queries: dict[str, str],
    url: str,
    rerank: str | None,
    candidates: int,
) -> list[ScoredDoc]:
    """The best pages of each question, best first, by their files."""
    found = []
    place = rerank or url
    keys = keys_of(place, RERANK_KEY, url)
    drawing = Drawing(Tiler.from_model(None))
    with PageProcess(drawing) as process:  # its start takes seconds
        async with connect(url) as client, connect(place, keys=keys) as ranks:
            for query, text in queries.items():
                _, vector = await find_embedder(client, text)
                hits = store.nearest(vector, candidates if rerank else DEPTH)
                pages = [FoundPage(hit) for hit in hits]
                if rerank:
                    draw(pages, process, None)
                    pages = await rank(ranks, text, pages)
                for number, page in enumerate(pages):
                    found.append(ScoredDoc(query, page.hit.file, -number))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("draw", "measure"))
    parser.add_argument("set", type=Path)
    parser.add_argument("--pages", type=int, default=200, help="that are drawn")
    parser.add_argument(
        "--alike", type=int, default=1, help="of them that are almost equal, in groups"
    )
    parser.add_argument("--url", help="server of the embedding model")
    parser.add_argument("--rerank", metavar="URL", help="server of the ranking model")
    parser.add_argument("--candidates", type=int, default=50, help="that it ranks")
    parser.add_argument("--language", help="of the questions, such as english")
    args = parser.parse_args()
    if args.action == "draw":
        draw_set(args.set, args.pages, args.alike)
    elif not args.url:
        parser.error("measure needs --url of a server.")
    else:
        found = measure(args.set, args.url, args.rerank, args.candidates, args.language)
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
