# SPDX-License-Identifier: Apache-2.0
"""Which documents of an index are gone from the folders that were read."""

import os
from collections.abc import Iterable

from ..documents.finding import Folders, is_url, name_of


def gone(
    known: Iterable[str], paths: Iterable[str], found: Folders, root: str | None
) -> list[str]:
    """Names of documents that were in the folders and are not there now.

    Documents below a folder that cannot be listed, or of a given folder without any
    document, such as a drive that is not mounted, are not gone.

    Args:
        known: Names of documents.
        paths: Files and folders that were looked through.
        found: What is there.
        root: See `find_documents`.
    """
    there = {document.name for document in found.documents}
    folders = []
    for path in paths:
        if is_url(path) or os.path.isdir(path):
            place = path.rstrip("/") if is_url(path) else os.path.realpath(path)
            folder = name_of(place + "/", root)
            if any(name.startswith(folder) for name in there):
                folders.append(folder)
    return [
        name
        for name in known
        if name not in there
        and name.startswith(tuple(folders))
        # A folder that cannot be listed is among the documents.
        and not any(
            char == "/" and name[:place] in there for place, char in enumerate(name)
        )
    ]
