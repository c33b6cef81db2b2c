# SPDX-License-Identifier: Apache-2.0
"""Pages that were read earlier are drawn again."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .finding import Found, Source, is_url, local_file, opened_locally
from .pages import Document, Page
from .process import PageProcess

# How an error begins if a document cannot be drawn for what it is not.
_AWAY = "The document "
_OUTSIDE = f"{_AWAY}is not in the folder that was read."


def pages_again(
    process: PageProcess,
    wanted: Iterable[tuple[str, Collection[int], Mapping[str, Any]]],
    folder: str | None,
) -> Iterator[Page]:
    """Draw pages of documents, unless those have changed.

    Args:
        process: That draws.
        wanted: Documents: name, numbers of the pages, and state when they were read,
            see `Source`.
        folder: Of the documents whose names are relative.

    Yields:
        Each page, with an error if it cannot be drawn.
    """
    listed: set[int | None] = set()

    def left_out(name: str, number: int | None) -> bool:
        return number not in listed

    for name, numbers, source in wanted:
        if not numbers:
            continue
        missing, cause = {*numbers}, "The document has no such page."
        listed = {None, *numbers}  # `None` asks about the document itself
        try:
            with opened_locally(_find(name, folder)) as path:
                _check(path, source)
                for page in process.read([Document(name, path)], left_out):
                    if page.number is None:
                        cause = page.error or cause
                        continue
                    missing.remove(page.number)
                    yield page
        except OSError as error:
            cause = f"{_AWAY}cannot be read: {error.strerror or error}."
        except ValueError as error:
            cause = str(error)
        for number in sorted(missing):
            yield Page(name, number, error=cause)


def is_away(page: Page) -> bool:
    """Whether a page has an error because its document is gone or has changed."""
    return page.error is not None and page.error.startswith(_AWAY)


def _find(name: str, folder: str | None) -> Found:
    """A document.

    Raises:
        ValueError: It is in no known folder, or outside of the one that was read.
    """
    if "\0" in name:
        raise ValueError(f"{_AWAY}is not on this machine.")
    if is_url(name):
        return Found(name, name)
    path = Path(name)
    if not path.is_absolute():
        if folder is None:
            raise ValueError("The records do not say in which folder it was (--root).")
        if ".." in path.parts:
            raise ValueError(_OUTSIDE)
        if is_url(folder):
            # A chain of fsspec, or `..` as a server decodes it
            if "::" in name or ".." in unquote(name).split("/"):
                raise ValueError(_OUTSIDE)
            return Found(name, f"{folder.rstrip('/')}/{name}")
        path = local_file(f"{folder}/{name}").resolve()
        if not path.is_relative_to(Path(folder).resolve()):
            raise ValueError(_OUTSIDE)
    return Found(name, str(local_file(str(path))))


def _check(path: Path, source: Mapping[str, Any]) -> None:
    """Refuse a document that differs from the one that was read.

    Raises:
        OSError: It cannot be read.
        ValueError: It differs, or is not a regular file.
    """
    now = Source.of(path)._asdict()
    if any(source.get(key, now[key]) != now[key] for key in ("bytes", "sha256")):
        raise ValueError(f"{_AWAY}has changed since it was read.")
