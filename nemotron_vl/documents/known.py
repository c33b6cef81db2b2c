# SPDX-License-Identifier: Apache-2.0
"""Which pages of a document have records, and which of those still count."""

from typing import Any, NamedTuple

Record = dict[str, Any]


class Counts(NamedTuple):
    """Of records: how many, with ``error``, and with ``cut`` but without ``error``."""

    records: int = 0
    errors: int = 0
    cut: int = 0


class Known:
    """What is known of a document's records: those about its last state."""

    __slots__ = "_again", "_pages", "_records", "outdated", "source"

    def __init__(self) -> None:
        self.source: dict[str, Any] | None = None
        self.outdated = False  # it has changed since
        self._records: dict[int | None, Counts] = {}  # by page
        self._pages: dict[int, int | None] = {}  # which of them has the page
        self._again: set[int | None] = set()  # to be done again

    def add(self, record: Record) -> bool:
        """Whether all earlier records still count."""
        page, source = record["page"], record.get("source")
        replaces = page in self._records
        if self._is_of_another_state(record):
            replaces = True
            self._records.clear()
            self._pages.clear()
            self._again.clear()
            self.source = None
        if page is not None and self.opens_again():
            replaces = True
            del self._records[None]
            self._again.discard(None)
        if source:  # that of the last page has the number of pages
            self.source = (self.source or {}) | source
        self.outdated = False
        error = "error" in record
        self._records[page] = Counts(1, error, "cut" in record and not error)
        self._pages |= dict.fromkeys(record.get("pages", ()), page)
        self._again.discard(page)
        return not replaces

    def done(self, page: int | None) -> bool:
        if self.outdated:
            return False
        place = page if page in self._records else self._pages.get(page or 0, page)
        return place in self._records and place not in self._again

    def opens_again(self) -> bool:
        """Whether the record that it cannot be opened is to be replaced."""
        return None in self._again and None in self._records

    def retry(self, page: int | None) -> None:
        self._again.add(page)

    def counts(self) -> Counts:
        return Counts(*map(sum, zip(Counts(), *self._records.values(), strict=True)))

    def equals(self, other: "Known") -> bool:
        """Whether all pages of a document of the same content are done."""
        before, now = self.source, other.source
        if before and now and before["sha256"] != now["sha256"]:
            return False
        return all(map(self.done, other._records))

    def has(self, record: Record) -> bool:
        """Whether the last record of a page counts."""
        return not self._is_of_another_state(record) and record["page"] in self._records

    def _is_of_another_state(self, record: Record) -> bool:
        source = record.get("source")
        return bool(
            source and self.source and source["sha256"] != self.source["sha256"]
        )
