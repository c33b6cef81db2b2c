# SPDX-License-Identifier: Apache-2.0
"""Which pages are embedded, and the adding of more."""

import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from ..documents.finding import is_url
from ..documents.known import Record
from ..documents.records import Records, open_alone
from .store import APPROXIMATE_FROM, LOCK, Store

_BATCH = 500  # pages
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

    Raises:
        OSError: It cannot be written.
        ValueError: Another process writes to it, it is no index, or its pages have
            other settings.
    """

    kept = True
    _holds = "pages"

    def __init__(
        self, place: str, settings: dict[str, Any], root: str | None = None
    ) -> None:
        super().__init__(settings, root)
        self.name = place
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
                self._note(record)

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
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

    def settle(self, model: str, dimension: int = 0) -> None:
        """Note which model embeds.

        Args:
            model: Its name.
            dimension: Of its vectors.
        """
        super().settle(model)
        before = self._settings.get("dimension")
        if before not in (None, dimension):
            message = self._other({"dimension": before}, {"dimension": dimension})
            raise ValueError(message)
        self._settings["dimension"] = dimension
        if self._store is None:
            kept = self._settings | {"root": self._root}
            self._store = Store.create(self.name, kept)
            self._has_head = True

    def _compare(self, kept: dict[str, Any]) -> None:
        """Refuse settings other than those of the index, and take its model."""
        now = self._settings
        self.check_root(kept.get("root"))
        if now["model"] is None:
            now["model"] = kept["model"]
        if any(value != kept.get(name) for name, value in now.items()):
            raise ValueError(self._other(kept, now))
        now["dimension"] = kept["dimension"]
        self._has_head = True

    def about(self, files: Container[str]) -> list[Record]:
        self._flush()
        names = [name for name in self._known if name in files]
        return [*self._store.records(names)] if self._store and names else []

    def outdate(self, file: str) -> None:
        super().outdate(file)
        self._changed.add(file)

    def append(self, record: Record) -> None:
        self._check_new(record)
        self._rows.append(record)
        self.appended += 1
        self._note(record)
        late = time.monotonic() - self._written > _SECONDS
        if late or len(self._rows) >= _BATCH:
            self._flush()

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

    def tidy(self, approximate_from: int = APPROXIMATE_FROM) -> None:
        """See `Store.tidy`."""
        self._flush()
        if self._store is not None:
            self._store.tidy(approximate_from)
