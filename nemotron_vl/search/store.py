# SPDX-License-Identifier: Apache-2.0
"""The vectors of pages in LanceDB: a folder, an object store or LanceDB's service.

A row is a page: ``file``, ``page`` (0 for a document that cannot be opened),
``vector`` or ``error``, and ``bytes``, ``modified``, ``sha256`` and ``pages``, see
`Job.source`.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Self

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfRq

from ..documents.finding import is_url

LOCK = "nemotron-vl.lock"  # of a process that writes
_TABLE = "pages"
_SETTINGS = "nemotron_vl"  # metadata of the first column
_NEEDED = {"dimension", "model", "trial", "trial_page", "root", "places"}
_INDEX = re.compile(r"pages_(\d+)")
_ALIKE = 0.999  # cosine of two embeddings of the same by a model
_STATE = ("file", "page", "error", "bytes", "modified", "sha256", "pages")
# The approximate index: from how many pages on, and when its clusters are made anew.
APPROXIMATE_FROM = 100_000
_GROWTH = 2
# Of the pages that it proposes, this many times those wanted are compared exactly.
_REFINED = 10
_PROBES = 100  # clusters that are searched; docs/search.md has what others find
_KEPT = timedelta(hours=1)  # for those who search while old versions are removed
_FILES_AT_ONCE = 500  # in a condition
_UNCHANGED = "cannot be changed."


class Hit(NamedTuple):
    """A page that was found.

    Args:
        file: Name of the document.
        page: From 1.
        score: Cosine of the angle between question and page.
        source: State of the file when it was embedded, see `Source`.
    """

    file: str
    page: int
    score: float
    source: dict[str, Any]


class Store:
    """The table of an index.

    Args:
        table: Of LanceDB.
        settings: What the embeddings depend on.
        name: Place of the index.
    """

    def __init__(self, table: Any, settings: dict[str, Any], name: str) -> None:
        self._table = table
        self.settings = settings
        self.name = name

    @classmethod
    def create(cls, place: str, settings: dict[str, Any]) -> Self:
        """A new index.

        Args:
            place: Folder or URI of LanceDB.
            settings: Those of `_NEEDED`, and others that pages depend on.
        """
        vector = pa.list_(pa.float16(), settings["dimension"])
        kept = {_SETTINGS: json.dumps(settings)}
        schema = pa.schema(
            [
                pa.field("file", pa.string(), nullable=False, metadata=kept),
                pa.field("page", pa.int32(), nullable=False),
                pa.field("vector", vector),
                pa.field("error", pa.string()),
                pa.field("bytes", pa.int64()),
                pa.field("modified", pa.string()),  # JSON: a number or a text
                pa.field("sha256", pa.string()),
                pa.field("pages", pa.int32()),
            ]
        )
        table = lancedb.connect(place).create_table(_TABLE, schema=schema)
        return cls(table, settings, place)

    @classmethod
    def open(cls, place: str) -> Self | None:
        """An index, or ``None`` if there is none.

        Raises:
            ValueError: It is damaged, or another program's.
        """
        if not is_url(place):
            if not os.path.exists(place):
                return None
            if not os.path.isdir(place):
                raise ValueError(f"{place} is not an index, but a file.")
        with _named(place):
            database = lancedb.connect(place)
            if _TABLE not in database.list_tables().tables:
                if not is_url(place) and {*os.listdir(place)} - {LOCK}:
                    raise ValueError("the folder holds other files")
                return None
            table = database.open_table(_TABLE)
            kept = table.schema.field("file").metadata or {}
            settings = json.loads(kept[_SETTINGS.encode()])
        if missing := _NEEDED - settings.keys():
            raise ValueError(
                f"{place} is the index of another release: it does not say "
                f"{', '.join(sorted(missing))}. Make another index."
            )
        return cls(table, settings, place)

    def set(self, **settings: Any) -> None:
        """Change settings."""
        self.settings |= settings
        kept = {_SETTINGS: json.dumps(self.settings)}
        self._table.update_field_metadata({"path": "file", "metadata": kept})

    def check(
        self, trial: Sequence[float], trial_page: Sequence[float] | None = None
    ) -> None:
        """Refuse a server of another model. Its name does not matter.

        Args:
            trial: The vector of a question, see `find_embedder`.
            trial_page: That of a page, see `embed_trial_page`.

        Raises:
            ValueError: It differs from that of the index.
        """
        if not _alike(trial, self.settings["trial"]):
            raise ValueError(
                f"{self.name} has pages that another model embedded. Ask a server of "
                f"{self.settings['model']}, or make another index."
            )
        if trial_page is not None and not _alike(
            trial_page, self.settings["trial_page"]
        ):
            raise ValueError(
                f"{self.name} has pages that the model embedded with other options, "
                "such as another number of tiles or another "
                "adapter. Start the server as before, or make another index."
            )

    def __len__(self) -> int:
        return self._table.count_rows()

    def states(self) -> Iterator[dict[str, Any]]:
        """The records of all pages, see `Records`, without their vectors."""
        for batch in self._rows(_STATE).to_batches():
            yield from map(_record, batch.to_pylist())

    def records(self, files: Collection[str]) -> Iterator[dict[str, Any]]:
        """The records of some documents, with their vectors."""
        for some in _listed(files):
            rows = self._rows((*_STATE, "vector"), some)
            for batch in rows.to_batches(_FILES_AT_ONCE):
                for row in batch.to_pylist():
                    yield _record(row) | {"vector": row["vector"]}

    def _rows(self, columns: Sequence[str], condition: str | None = None) -> pa.Table:
        query = self._table.search().select([*columns])
        with _named(self.name):
            return (query.where(condition) if condition else query).to_arrow()

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Add pages that are not there."""
        rows = [_row(record) for record in records]
        with _named(self.name, _UNCHANGED):
            self._table.add(pa.Table.from_pylist(rows, self._table.schema))

    def remove(self, files: Iterable[str]) -> None:
        """Remove documents."""
        with _named(self.name, _UNCHANGED):
            for some in _listed([*files]):
                self._table.delete(some)

    def keep(self, counts: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the pages that do not count.

        Args:
            counts: Whether a record does, see `states`; asked once about each.
        """
        query = self._table.search().select([*_STATE]).with_row_id(True)
        with _named(self.name, _UNCHANGED):
            rows = query.to_arrow().to_batches()
            listed = (row for batch in rows for row in batch.to_pylist())
            left = [row["_rowid"] for row in listed if not counts(_record(row))]
            for start in range(0, len(left), _FILES_AT_ONCE):
                some = map(str, left[start : start + _FILES_AT_ONCE])
                self._table.delete(f"_rowid IN ({', '.join(some)})")

    def remove_errors(self) -> None:
        with _named(self.name, _UNCHANGED):
            self._table.delete("error IS NOT NULL")

    def tidy(self, approximate_from: int = APPROXIMATE_FROM) -> None:
        """Compact the table, and index many pages.

        Args:
            approximate_from: Number of pages from which the search is approximate.
        """
        count = len(self)
        named = (_INDEX.fullmatch(i.name) for i in self._table.list_indices())
        # Its name says how many pages its clusters were made of.
        before = {match[0]: int(match[1]) for match in named if match}
        made_of = max(before.values(), default=0)
        many = count >= max(approximate_from, _GROWTH * made_of)
        if many and self.settings["dimension"] % 8 == 0:  # RaBitQ needs whole bytes
            config = IvfRq(distance_type="cosine")
            with _named(self.name, _UNCHANGED):
                self._table.create_index("vector", config=config, name=f"pages_{count}")
                for name in before.keys() - {f"pages_{count}"}:
                    self._table.drop_index(name)
        self.compact()

    def compact(self) -> None:
        """Join small pieces, and remove what is deleted."""
        with _named(self.name, _UNCHANGED):
            self._table.optimize(cleanup_older_than=_KEPT)

    def nearest(
        self, vector: Sequence[float], limit: int, exact: bool = False
    ) -> list[Hit]:
        """The pages that are most like a vector, best first.

        Args:
            vector: Of the model's dimension.
            limit: Most pages.
            exact: Compare all pages, also where there is an approximate index.
        """
        query = self._table.search(vector, vector_column_name="vector")
        query = query.distance_type("cosine").limit(limit)
        if exact:
            query = query.bypass_vector_index()
        else:
            query = query.nprobes(_PROBES).refine_factor(_REFINED)
        with _named(self.name):
            rows = query.select([*_STATE, "_distance"]).to_list()
        return [
            Hit(
                row["file"],
                row["page"],
                1 - row["_distance"],
                _record(row).get("source", {}),
            )
            for row in rows
        ]


@contextlib.contextmanager
def _named(place: str, said: str = "cannot be read as an index.") -> Iterator[None]:
    """Say which index an error is about; LanceDB raises all kinds.

    Args:
        place: Of the index.
        said: What cannot be done.
    """
    try:
        yield
    except Exception as error:
        cause = (str(error).splitlines() or [""])[0][:300]
        raise ValueError(
            f"{place} {said} It is damaged, full, away or of another "
            f"program: {type(error).__name__}: {cause}"
        ) from error


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    a, b = np.array(one), np.array(other)
    if a.shape != b.shape:
        return False
    return bool(0 < _ALIKE * np.linalg.norm(a) * np.linalg.norm(b) <= a @ b)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    source = record.get("source") or {}
    vector = record.get("vector")
    return {
        "file": record["file"],
        "page": record["page"] or 0,
        "vector": None if vector is None else np.asarray(vector, np.float16),
        "error": record.get("error"),
        "bytes": source.get("bytes"),
        "modified": json.dumps(source["modified"]) if source else None,
        "sha256": source.get("sha256"),
        "pages": source.get("pages"),
    }


def _record(row: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {"file": row["file"], "page": row["page"] or None}
    if row["error"] is not None:
        record["error"] = row["error"]
    if row["sha256"] is not None:
        modified = json.loads(row["modified"])
        record["source"] = {"bytes": row["bytes"], "modified": modified}
        record["source"]["sha256"] = row["sha256"]
        if row["pages"] is not None:
            record["source"]["pages"] = row["pages"]
    return record


def _listed(files: Collection[str]) -> Iterator[str]:
    """Conditions that hold for some files each."""
    names = [_quoted(file) for file in files]
    for start in range(0, len(names), _FILES_AT_ONCE):
        yield f"file IN ({', '.join(names[start : start + _FILES_AT_ONCE])})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
