"""Three engines for vectors, with the synthetic pages of `benchmarks/search.py`.

Each engine adds and indexes the pages in a process of its own, keeps the result on the
disk, and searches. "CPU" is the time of all its threads, "recall" the share of the ten
pages of the exact search, over all queries. An engine that is not installed is named.

    uv pip install --target build/engines --no-deps faiss-cpu usearch numkong
    PYTHONPATH=build/engines python benchmarks/search_engines.py
"""

import importlib.util
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from search import (
    WANTED,
    Archive,
    make_search_parser,
    make_store,
    peak,
    seconds,
    size,
)

from nemotron_vl.search.index import BATCH

SAMPLED = 64  # pages that FAISS makes a cluster of
PROBES = 100  # clusters that FAISS searches, as many as LanceDB
BREADTH = 128  # candidates of a search in USearch's graph


def main() -> None:
    parser = make_search_parser(__doc__)
    parser.add_argument("--engines", nargs="+", default=[*ENGINES], choices=ENGINES)
    args = parser.parse_args()
    if args.quick:
        args.pages, args.dimension, args.queries = 5_000, 256, 10
    archive = Archive(args.pages, args.dimension)
    queries = np.array([*archive.queries(args.queries)])
    best = exact(archive, queries)
    found = {}
    for name in args.engines:
        if not importlib.util.find_spec(name):
            print(f"{name:>8}  is not installed")
            continue
        with (
            tempfile.TemporaryDirectory(dir=args.folder) as folder,
            multiprocessing.get_context("spawn").Pool(1) as process,
        ):
            job = (name, folder, archive, queries, best)
            found[name] = process.apply(measure, job)
        figures = "  ".join(f"{n} {value:,.4g}" for n, value in found[name].items())
        print(f"{name:>8}  {figures}", flush=True)
    if args.json:
        print(json.dumps(found))


def exact(archive: Archive, queries: np.ndarray) -> list[set[int]]:
    """Numbers of the pages nearest to each query."""
    scores = np.concatenate([queries @ pages.T for _, pages in batches(archive)], 1)
    nearest = np.argpartition(-scores, WANTED, axis=1)[:, :WANTED]
    return [{*row.tolist()} for row in nearest]


def batches(archive: Archive) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first page, and vectors."""
    for start in range(0, archive.count, BATCH):
        yield start, archive.pages(start)


def measure(
    name: str, folder: str, archive: Archive, queries: np.ndarray, best: list[set[int]]
) -> dict[str, float]:
    engine = ENGINES[name](Path(folder), archive)
    cost = np.zeros(2)
    for start, pages in batches(archive):
        cost += cost_of(partial(engine.add, start, pages))
    making, cpu = (cost + cost_of(engine.finish)).tolist()
    memory = peak()
    hits, times = [], []
    engine.search(queries[0])
    for query, nearest in zip(queries, best, strict=True):
        begin = time.perf_counter()
        found = engine.search(query)
        times.append(time.perf_counter() - begin)
        hits.append(len(found & nearest) / WANTED)
    return {
        "making_s": making,
        "making_cpu_s": cpu,
        "peak_mb": memory,
        "size_mb": size(Path(folder)),
        "search_ms": 1000 * statistics.median(times),
        "recall_at_10": statistics.mean(hits),
    }


def cost_of(call: Callable[[], object]) -> np.ndarray:
    """Seconds, and those of all threads."""
    before = time.process_time()
    elapsed = seconds(call)
    return np.array([elapsed, time.process_time() - before])


class LanceDB:
    """The store of `nemotron-vl index`: IVF and RaBitQ, vectors in float16."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        self._store = make_store(str(folder / "index"), archive.dimension)
        self._count = archive.count

    def add(self, start: int, pages: np.ndarray) -> None:
        self._store.add(
            [
                {"file": str(number), "page": 1, "vector": vector}
                for number, vector in enumerate(pages, start)
            ]
        )

    def finish(self) -> None:
        self._store.tidy(self._count)

    def search(self, query: np.ndarray) -> set[int]:
        return {int(hit.file) for hit in self._store.nearest(query, WANTED)}


class Faiss:
    """Clusters in memory, vectors in float16, written when they are whole."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        import faiss

        clusters = int(archive.count**0.5)
        starts = range(0, min(archive.count, SAMPLED * clusters), BATCH)
        self._sample = np.concatenate([archive.pages(start) for start in starts])
        self._index = faiss.index_factory(
            archive.dimension, f"IVF{clusters},SQfp16", faiss.METRIC_INNER_PRODUCT
        )
        self._index.nprobe = PROBES
        self._write = lambda: faiss.write_index(self._index, str(folder / "index"))

    def add(self, start: int, pages: np.ndarray) -> None:
        if not self._index.is_trained:
            self._index.train(self._sample)
            del self._sample
        self._index.add(pages)

    def finish(self) -> None:
        self._write()

    def search(self, query: np.ndarray) -> set[int]:
        return {*self._index.search(query[None], WANTED)[1][0].tolist()}


class USearch:
    """A graph in memory, vectors in float16, written when it is whole."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        from usearch.index import Index

        self._place = str(folder / "index")
        self._index = Index(
            ndim=archive.dimension,
            metric="ip",
            dtype="f16",
            expansion_search=BREADTH,
        )

    def add(self, start: int, pages: np.ndarray) -> None:
        keys: Any = np.arange(start, start + len(pages))
        self._index.add(keys, pages)

    def finish(self) -> None:
        self._index.save(self._place)

    def search(self, query: np.ndarray) -> set[int]:
        return {*self._index.search(query, WANTED).keys.tolist()}


ENGINES = {"lancedb": LanceDB, "faiss": Faiss, "usearch": USearch}


if __name__ == "__main__":
    main()
