"""Builds an index of synthetic pages, and measures what a million of them take.

A page's vector is that of its topic with noise, and a query is a page's vector with
noise. Recall is the share of the ten pages of the exact search that the approximate one
finds.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from options import make_parser

from nemotron_vl.search.index import BATCH
from nemotron_vl.search.store import Store

PAGES_OF_A_TOPIC = 50
NOISE = 0.8  # of a page, in lengths of its topic's vector
NOISE_OF_QUERY = 0.5
WANTED = 10


def main() -> None:
    args = make_search_parser(__doc__).parse_args()
    if args.quick:
        args.pages, args.dimension, args.queries = 50_000, 256, 20
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = {}
        for name, value in measure(str(Path(folder, "index")), args):
            print(f"{name.replace('_', ' '):>24}  {value:,.4g}", flush=True)
            found[name] = value
    if args.json:
        print(json.dumps(found))


def make_search_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the sizes of an `Archive`."""
    parser = make_parser(description)
    parser.add_argument("--pages", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--folder", type=Path, help="for the index")
    return parser


def make_store(place: str, dimension: int) -> Store:
    settings = {"model": "synthetic", "trial": [], "trial_page": []}
    settings |= {"root": "/archive", "places": []}
    return Store.create(place, settings | {"dimension": dimension})


def measure(place: str, args: Any) -> Iterator[tuple[str, float]]:
    """Seconds, megabytes and recall, by name."""
    yield "pages", args.pages
    yield "dimension", args.dimension
    store = make_store(place, args.dimension)
    archive = Archive(args.pages, args.dimension)
    adding = [seconds(partial(store.add, batch)) for batch in archive.batches()]
    yield "adding_s", sum(adding)
    yield "adding_peak_mb", peak()
    yield "compacting_s", seconds(lambda: store.tidy(args.pages + 1))
    vectors = [*archive.queries(args.queries)]
    yield "approximate_index_s", seconds(lambda: store.tidy(args.pages))
    yield "approximate_index_peak_mb", peak()
    yield "size_mb", size(Path(place))
    near, time_of_one = search(store, vectors, exact=False)
    yield "approximate_ms", time_of_one
    exact, time_of_one = search(store, vectors, exact=True)
    yield "exact_ms", time_of_one
    hits = [len(a & b) / WANTED for a, b in zip(exact, near, strict=True)]
    yield "recall_at_10", statistics.mean(hits)
    yield "opening_s", seconds(lambda: sum(1 for _ in Store.open(place).states()))
    yield "peak_mb", peak()


class Archive:
    """Synthetic pages.

    Args:
        count: Number of pages.
        dimension: Of their vectors.
    """

    def __init__(self, count: int, dimension: int) -> None:
        self.count, self.dimension = count, dimension
        chance = np.random.default_rng(0)
        topics = max(1, count // PAGES_OF_A_TOPIC)
        self._topics = chance.standard_normal((topics, dimension), np.float32)
        self._topic_of = chance.integers(topics, size=count)

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        for start in range(0, len(self._topic_of), BATCH):
            batch = []
            for number, vector in enumerate(self.pages(start), start):
                file, page = divmod(number, 10)
                source = {"bytes": file, "modified": 0.0, "sha256": f"{file:064x}"}
                place = {"file": f"/archive/{file:07}.pdf", "page": page + 1}
                batch.append({**place, "vector": vector, "source": source})
            yield batch

    def pages(self, start: int) -> np.ndarray:
        """Vectors of a batch of pages from a number on."""
        found = self._topics[self._topic_of[start : start + BATCH]]
        chance = np.random.default_rng([1, start])
        found += NOISE * chance.standard_normal(found.shape, np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def queries(self, number: int) -> Iterator[np.ndarray]:
        chance = np.random.default_rng(2)
        batches = -(-len(self._topic_of) // BATCH)
        for start in chance.integers(batches, size=number) * BATCH:
            page = chance.choice(self.pages(int(start)))
            noise = chance.standard_normal(page.shape, np.float32) / page.size**0.5
            yield page + NOISE_OF_QUERY * noise


def search(
    store: Store, vectors: list[np.ndarray], exact: bool
) -> tuple[list[set], float]:
    """The pages found for each, and the median of the milliseconds."""
    found, times = [], []
    for vector in [vectors[0], *vectors]:
        start = time.perf_counter()
        hits = store.nearest(vector, WANTED, exact)
        times.append(time.perf_counter() - start)
        found.append({(hit.file, hit.page) for hit in hits})
    return found[1:], 1000 * statistics.median(times[1:])


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def size(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def peak() -> float:
    """Of this process's memory, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
