# SPDX-License-Identifier: Apache-2.0
"""Documents that have changed since they were read, and documents that are equal."""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from .finding import Found, Source
from .records import PageRecords, Record


def equal_files(documents: list[Found]) -> tuple[list[Found], dict[str, list[Found]]]:
    """Separate the local files that equal an earlier one.

    Returns:
        The others, and by name of a document those that equal it.
    """
    sizes: dict[int, list[Found]] = defaultdict(list)
    for document in documents:
        if document.bytes and not document.remote:
            sizes[document.bytes].append(document)
    first: dict[str, str] = {}
    copies: dict[str, list[Found]] = defaultdict(list)
    for document in itertools.chain(*(same for same in sizes.values() if same[1:])):
        with contextlib.suppress(OSError, ValueError):  # `Job.pages` says why
            digest = Source.of(Path(document.place)).sha256
            original = first.setdefault(digest, document.name)
            if original != document.name:
                copies[original].append(document)
    others = {copy.name for same in copies.values() for copy in same}
    return [found for found in documents if found.name not in others], copies


def prepare(
    records: PageRecords, documents: list[Found], retried: Collection[str]
) -> list[str]:
    """Remove the records of documents that have changed, and those to be done again.

    Args:
        records: Of earlier runs.
        documents: Those that are read now.
        retried: Keys of records that are to be done again, such as ``error``.

    Returns:
        Names of the changed documents.
    """
    names = {document.name for document in documents}
    sources = ((document, records.source(document.name)) for document in documents)
    changed = {d.name for d, source in sources if source and not d.is_as_in(source)}

    def unwanted(record: Record) -> bool:
        name = record["file"]
        return name in changed or (
            name in names and not record.keys().isdisjoint(retried)
        )

    if any(map(unwanted, records)):
        records.drop(unwanted)
    return sorted(changed)
