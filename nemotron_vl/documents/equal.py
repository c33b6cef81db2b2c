# SPDX-License-Identifier: Apache-2.0
"""Documents of equal content."""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .finding import Found, Source


def equal_files(
    documents: list[Found],
    known: Callable[[str], Mapping[str, Any] | None] = lambda name: None,
) -> tuple[list[Found], dict[str, list[Found]]]:
    """Separate the local files that equal an earlier one.

    Args:
        documents: Files, and others, which stay.
        known: The state of a file when it was read, see `Source`, by its name. If its
            size and time are those, it is not read again.

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
            source = known(document.name)
            if source is None or not document.is_as_before(source):
                source = Source.of(Path(document.place))._asdict()
            digest = source["sha256"]
            original = first.setdefault(digest, document.name)
            if original != document.name:
                copies[original].append(document)
    others = {copy.name for same in copies.values() for copy in same}
    return [found for found in documents if found.name not in others], copies
