# SPDX-License-Identifier: Apache-2.0
"""Which documents there are, what they are called, and whether they have changed.

Folders may be on any file system that fsspec knows, such as ``s3://bucket/folder``.
"""

import hashlib
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..regular_files import open_regular

# Suffixes of the files that are taken from folders.
SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pbm"),
    *(".pdf", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}


class Source(NamedTuple):
    """The state of a file.

    Args:
        bytes: Its size.
        modified: When it was changed, in seconds or as its file system says it.
        sha256: Of its content, in hexadecimal.
    """

    bytes: int
    modified: float | str
    sha256: str

    @classmethod
    def of(cls, file: Path, modified: float | str | None = None) -> "Source":
        """Read a file.

        Args:
            file: A local file.
            modified: As the file system says it of which this is a copy.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a regular file.
        """
        with open_regular(file) as opened:
            status = os.fstat(opened.fileno())
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return cls(status.st_size, modified or status.st_mtime, digest)


class Found(NamedTuple):
    """A document by its name, before it is read.

    Args:
        name: As it is in records: valid UTF-8; an absolute path, a URL, or relative to
            the root.
        place: Local path or URL.
        bytes: Size; ``None`` if it cannot be examined.
        modified: See `Source`.
    """

    name: str
    place: str
    bytes: int | None = None
    modified: float | str | None = None

    @property
    def remote(self) -> bool:
        return is_url(self.place)

    def examined_again(self) -> "Found":
        """With the size and time of now, if it is a local file."""
        if self.remote:
            return self
        try:
            status = os.stat(self.place)
        except OSError:
            return self._replace(bytes=None, modified=None)
        return self._replace(bytes=status.st_size, modified=status.st_mtime)

    def is_as_before(self, source: Mapping[str, Any]) -> bool:
        """Whether size and time are those of a file that was read."""
        return (self.bytes, self.modified) == (source["bytes"], source["modified"])

    def has_changed(self, source: Mapping[str, Any]) -> bool:
        """Whether it is not what was read. The content decides if the time differs.

        What cannot be examined now, such as on a drive that is not there, has not
        changed.
        """
        if self.bytes is None:
            return False
        if self.is_as_before(source):
            return False
        if self.bytes != source["bytes"]:
            return True
        try:
            with opened_locally(self) as file:
                return Source.of(file).sha256 != source["sha256"]
        except (OSError, ValueError):
            return False


class Folders(NamedTuple):
    """What was found in files and folders.

    Args:
        documents: Each once.
        left_out: How many files of each suffix were not taken.
    """

    documents: list[Found]
    left_out: Counter[str]


def find_documents(
    paths: Iterable[str | Path],
    root: str | None = None,
    suffixes: Collection[str] = SUFFIXES,
) -> Folders:
    """The given files, and all documents in the given folders, each once.

    In folders, files are chosen by their suffix; hidden files and folders are left out.
    Links to folders are not followed. What cannot be read is among the documents, so
    that `read_pages` says why.

    Args:
        paths: Local paths and URLs of fsspec.
        root: Names are relative to this folder; otherwise they are absolute, so that
            the same document has one name wherever the command runs.
        suffixes: Of the files that are taken from folders.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A document is not below the root, or a URL cannot be used.
    """
    found: dict[str, Found] = {}
    left_out: Counter[str] = Counter()

    def wanted(name: str) -> bool:
        if name[0] == ".":
            return False
        suffix = os.path.splitext(name)[1].lower()
        left_out[suffix] += suffix not in suffixes
        return suffix in suffixes

    if root is not None:
        root = root.rstrip("/") if is_url(root) else os.path.realpath(root)
    for path in paths:
        listed = _remote if is_url(str(path)) else _local
        for document in listed(str(path), wanted):
            same = document.place
            if not document.remote:
                same = os.path.realpath(same)
            name = name_of(document.place, root)
            found.setdefault(same, document._replace(name=name))
    documents = list(found.values())
    names = {document.name: document for document in documents}
    for document in documents:
        if names[document.name] is not document:
            raise ValueError(f"Two documents are called {document.name}. Rename one.")
    return Folders(documents, +left_out)


def is_url(place: str) -> bool:
    return "://" in place


def real_root(root: str | None) -> str | None:
    """A root as records keep it: without links, unless it is a URL."""
    return root if root is None or is_url(root) else os.path.realpath(root)


def absolute(path: str) -> str:
    """What the names of the documents at a path begin with, if there is no root."""
    if is_url(path):
        system, inside = file_system(path)
        return system.unstrip_protocol(inside).rstrip("/")
    if os.path.isdir(path):
        return os.path.realpath(path)
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def name_of(place: str, root: str | None) -> str:
    """The name of a document in records.

    Args:
        place: Local path or URL.
        root: See `find_documents`.

    Raises:
        ValueError: It is not below the root.
    """
    if root is not None:
        if not place.startswith(root.rstrip("/") + "/"):
            raise ValueError(f"{place} is not below the root {root}.")
        place = place[len(root.rstrip("/")) + 1 :]
    # Bytes that are not UTF-8, such as \xff, would make the records unreadable.
    return os.fsencode(place).decode(errors="backslashreplace")


def local_file(name: str) -> Path:
    """The file of a name in records, see `name_of`."""
    path = Path(name)
    if not path.exists():
        escaped = rb"\\x([0-9a-f]{2})"
        raw = re.sub(escaped, lambda found: bytes([int(found[1], 16)]), name.encode())
        odd = Path(os.fsdecode(raw))
        path = odd if odd.exists() else path
    return path


def _local(path: str, wanted: Callable[[str], bool]) -> Iterator[Found]:
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist.")
    place = absolute(path)
    files = _inside(place, wanted) if os.path.isdir(path) else [place]
    for file in files:
        yield Found(file, file).examined_again()


def _inside(folder: str, wanted: Callable[[str], bool]) -> list[str]:
    """Documents in a folder and below it, and folders that cannot be listed."""
    unreadable: list[str] = []
    files = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(error.filename)
    ):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in names:
            if wanted(name) and _may_be(os.path.join(place, name)):
                files.append(os.path.join(place, name))
    return sorted(files + unreadable, key=lambda file: Path(file).parts)


def _may_be(file: str) -> bool:
    """Whether it is a file, or cannot be examined; not a pipe or a socket."""
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError:
        return True


def file_system(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the path there.

    Raises:
        ValueError: fsspec or the package for this kind of URL is missing.
    """
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} needs a package: {error}") from error


def _remote(url: str, wanted: Callable[[str], bool]) -> Iterator[Found]:
    system, path = file_system(url)
    entries, folders = dict[str, Any](), [path]
    try:
        # fsspec's `find` leaves out what cannot be listed.
        while folders:
            folder = folders.pop()
            for entry in system.ls(folder, detail=True):
                name = entry["name"].rstrip("/")
                if entry["type"] != "directory":
                    entries[entry["name"]] = entry
                elif name != folder.rstrip("/"):
                    folders.append(name)
        if not entries and system.isfile(path):
            entries[path] = system.info(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} does not exist.") from error
    except Exception as error:  # each file system has its own
        cause = str(error) or type(error).__name__
        raise OSError(f"{url} cannot be listed: {cause}") from error
    for name, entry in sorted(entries.items()):
        below = name[len(path) :].strip("/").split("/")
        if below != [""] and (
            any(part[:1] == "." for part in below) or not wanted(below[-1])
        ):
            continue
        place = system.unstrip_protocol(name)
        yield Found(place, place, entry.get("size"), _modified(entry))


def _modified(entry: Mapping[str, Any]) -> float | str:
    """What changes with the file: its time, or a tag of its content."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "ETag", "created"):
        if value := entry.get(key):
            return value if isinstance(value, float) else str(value)
    return ""


class opened_locally:
    """A document as a local file, while a block runs: itself, or a copy.

    Raises:
        OSError: It cannot be copied.
    """

    def __init__(self, document: Found) -> None:
        self._document = document
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Path:
        if not self._document.remote:
            return Path(self._document.place)
        self._folder = tempfile.TemporaryDirectory(prefix="nemotron-vl-")
        file = Path(self._folder.name, "document")
        try:
            system, path = file_system(self._document.place)
            system.get_file(path, str(file))
        except Exception as error:  # each file system has its own
            self._folder.cleanup()
            message = f"It cannot be fetched: {str(error) or type(error).__name__}"
            raise OSError(message) from error
        return file

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
