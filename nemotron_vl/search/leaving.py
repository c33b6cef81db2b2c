# SPDX-License-Identifier: Apache-2.0
"""Which documents of an index are gone from the folders that were read."""

import os
from collections.abc import Iterable

from ..documents.finding import Folders, absolute, is_url, name_of


def gone(
    known: Iterable[str],
    paths: Iterable[str],
    found: Folders,
    root: str | None,
    empty: bool = False,
) -> list[str]:
    """Names of documents that were in the folders and are not there now.

    Documents below a folder that cannot be listed are not gone. Nor are those of a
    folder that now holds none: its drive may not be mounted.

    Args:
        known: Names of documents.
        paths: Files and folders that were looked through.
        found: What is there.
        root: See `find_documents`.
        empty: Count those of folders that now hold none.
    """
    there = {document.name for document in found.documents}
    holding = {""} | {
        name[:place] for name in there for place, char in enumerate(name) if char == "/"
    }
    folders = []
    for path in paths:
        if is_url(path) or os.path.isdir(path):
            folders.append(name_of(absolute(path) + "/", root))
    return [
        name
        for name in known
        if name not in there
        and name.startswith(tuple(folders))
        and (empty or name.rpartition("/")[0] in holding)
        # A folder that cannot be listed is among the documents.
        and not any(
            char == "/" and name[:place] in there for place, char in enumerate(name)
        )
    ]
