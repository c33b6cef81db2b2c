# SPDX-License-Identifier: Apache-2.0
"""Which pages are embedded, and the adding of more."""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..documents.finding import is_url
from ..documents.known import Record
from ..documents.records import Records, open_alone
from .store import APPROXIMATE_FROM, LOCK, Store

BATCH = 500  # pages
_BATCHES = 100  # between compactions
_SECONDS = 30.0  # between batches


class Index(Records):
    """Records of pages in a `Store`: with ``vector`` or ``error``.

    They are written in batches. A process that is killed loses the last one, whose
    pages are then done again. A lock keeps two processes from writing to one folder;
    nothing keeps them from writing to one URI.

    Args:
        place: Folder or URI of LanceDB.
        settings: See `Records`.
        root: See `Records`.
        places: Of the documents, see `absolute`, if there is no root.

    Raises:
        OSError: It cannot be written.
        ValueError: Another process writes to it, it is no index, or its pages have
            other settings.
    """

    kept = True
    _holds = "pages"

    def __init__(
        self,
        place: str,
        settings: dict[str, Any],
        root: str | None = None,
        places: Sequence[str] = (),
    ) -> None:
        super().__init__(settings, root)
        self.name = place
        self._places = [] if root else [*places]
        self._batches = 0  # since the table was compacted
        self._twice = False  # whether two commands have added pages at once
        self._rows: list[Record] = []
        self._changed: set[str] = set()
        self._written = time.monotonic()
        self._store = Store.open(place)
        if not is_url(place):
            Path(place).mkdir(parents=True, exist_ok=True)
            self._lock = open_alone(Path(place, LOCK))
            self._store = Store.open(place)  # as it is now
        if self._store is not None:
            self._compare(self._store.settings)
            for record in self._store.states():
                self._twice |= not self._note(record)

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
            self._compact()
        finally:
            if not is_url(self.name):
                self._lock.close()

    def __len__(self) -> int:
        """Number of the pages that can be found."""
        counts = self.counts()
        return counts.records - counts.errors

    @property
    def files(self) -> list[str]:
        """Names of all documents."""
        return [*self._known]

    def settle(
        self,
        model: str,
        trial: Sequence[float] = (),
        trial_page: Sequence[float] = (),
    ) -> None:
        """Note which model embeds.

        Args:
            model: Its name.
            trial: See `Store.check`.
            trial_page: See `Store.check`.

        Raises:
            ValueError: It is another one than that of the index.
        """
        if self._store is not None:
            self._store.check(trial, trial_page)
            return
        now = {"model": model, "dimension": len(trial), "trial": [*trial]}
        now |= {"trial_page": [*trial_page]}
        now |= {"root": self._root, "places": self._places}
        self._store = Store.create(self.name, self._settings | now)
        self._has_head = True

    def _compare(self, kept: dict[str, Any]) -> None:
        """Refuse settings other than those of the index; `settle` checks the model."""
        assert self._store is not None
        now = self._settings
        self.check_root(kept.get("root"))
        now["model"] = kept["model"]
        if any(value != kept.get(name) for name, value in now.items()):
            raise ValueError(self._other(kept, now))
        places = [*dict.fromkeys(kept["places"] + self._places)]
        if (self._root, places) != (kept["root"], kept["places"]):
            self._store.set(root=self._root, places=places)
        self._has_head = True

    def about(self, files: Container[str]) -> Iterator[Record]:
        self._flush()
        names = [name for name in self._known if name in files]
        if self._store and names:
            yield from self._store.records(names)

    def outdate(self, file: str) -> None:
        super().outdate(file)
        self._changed.add(file)

    def append(self, record: Record) -> None:
        self._check_new(record)
        self._rows.append(record)
        self.appended += 1
        self._note(record)
        late = time.monotonic() - self._written > _SECONDS
        if late or len(self._rows) >= BATCH:
            self._flush()
            if self._batches >= _BATCHES:
                self._compact()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._written = time.monotonic()
        if self._store is None or not rows:
            return
        # A process that is killed here does these documents again.
        stale = {row["file"] for row in rows} & self._changed
        self._store.remove(stale)
        self._changed -= stale
        self._store.add(rows)
        self._batches += 1

    def _compact(self) -> None:
        """Join the pieces of the last batches."""
        if self._store is not None and self._batches:
            self._store.compact()
        self._batches = 0

    def remove(self, files: list[str]) -> None:
        """Remove documents."""
        if self._store is not None:
            self._store.remove(files)
            for file in files:
                del self._known[file]

    def retry_errors(self) -> None:
        """Have the pages of errors done again."""
        if self._store is not None:
            self._store.remove_errors()
            self._known.clear()
            for record in self._store.states():
                self._note(record)

    def _counts_once(self) -> Callable[[Record], bool]:
        """A function that accepts one record of each page, of the document's state."""
        seen = set()

        def counts(record: Record) -> bool:
            known = self._known.get(record["file"])
            place = record["file"], record["page"]
            if known is None or not known.has(record) or place in seen:
                return False
            seen.add(place)
            return True

        return counts

    def tidy(self, approximate_from: int = APPROXIMATE_FROM) -> None:
        """See `Store.tidy`."""
        self._flush()
        if self._store is not None:
            if self._twice:
                self._store.keep(self._counts_once())
                self._twice = False
            self._store.tidy(approximate_from)
            self._batches = 0
