# SPDX-License-Identifier: Apache-2.0
"""Files that an export writes: only in the place of those of an earlier export."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ..regular_files import open_regular, read_text
from .records import open_alone

MARKER = ".nemotron-vl-export.json"
_MOST_BYTES = 1 << 26  # of a list of files
_MOST_FOLDERS = 8
_LONGEST = 200  # bytes of a name; file systems allow 255


class OutputFolder:
    """A folder of an export. A list of its files, `MARKER`, makes it recognisable.

    The files of an earlier export are removed. Others stay, and none is overwritten.

    Args:
        path: New, empty, or with the list of an earlier export.

    Raises:
        OSError: It cannot be written.
        ValueError: It holds other files and no list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        marker = path / MARKER
        path.mkdir(parents=True, exist_ok=True)
        if marker.exists() and not marker.is_symlink():
            for name in _listed(marker):
                self._remove(name)
            marker.unlink()
        elif any(path.iterdir()):
            raise ValueError(f"{path} is not empty, and no earlier export.")
        self._list = marker.open("x")

    def __enter__(self) -> "OutputFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._list.close()

    def write(self, name: str, content: bytes) -> None:
        """Write a new file.

        Args:
            name: Path in the folder, see `safe_name`.
            content: All of it.

        Raises:
            OSError: It cannot be written.
            ValueError: There is a file that an export did not write, or a link.
        """
        place = self._place(name)
        if place is None or place.exists() or place.is_symlink():
            raise ValueError(f"{self.path / name} is not from an earlier export.")
        self._list.write(json.dumps(name) + "\n")
        self._list.flush()  # an export that is killed is recognised, too
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            file.write(content)

    def _place(self, name: str) -> Path | None:
        """Where a file is, unless it would be outside or behind a link."""
        *folders, last = PurePosixPath(name).parts or ("..",)
        if ".." in (*folders, last) or PurePosixPath(name).is_absolute():
            return None
        place = self.path
        for folder in folders:
            place /= folder
            if place.is_symlink():
                return None
        return place / last

    def _remove(self, name: str) -> None:
        place = self._place(name)
        if place is None or not place.is_file():
            return
        place.unlink()
        with contextlib.suppress(OSError):  # of folders that are not empty
            for folder in [*place.relative_to(self.path).parents][:-1]:
                (self.path / folder).rmdir()


def _listed(marker: Path) -> list[str]:
    try:
        lines = read_text(marker, _MOST_BYTES).splitlines()
        names = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{marker} is no list of an export's files.") from error
    return [name for name in names if isinstance(name, str) and "\0" not in name]


def safe_name(name: str, suffix: str, taken: set[str]) -> str:
    """A path in a folder for a document of an untrusted name.

    Folders stay. Parts that lead elsewhere are left out, characters that file systems
    or shells take amiss become ``_``, and long names are cut. Equal names get a number.

    Args:
        name: Of the document, with ``/`` between folders.
        suffix: Such as ``.md``.
        taken: Names that were given, to which this one is added.
    """
    parts = [
        _safe_part(part) for part in name.split("/") if part not in ("", ".", "..")
    ]
    *folders, last = parts[-_MOST_FOLDERS:] or ["document"]
    # A folder does not take the name of a file.
    folders = [f + "_" if f.casefold().endswith(suffix) else f for f in folders]
    for number in range(1, 1 << 30):
        ending = suffix if number == 1 else f" ({number}){suffix}"
        found = "/".join([*folders, last + ending])
        if found.casefold() not in taken:
            break
    taken.add(found.casefold())
    return found


def _safe_part(part: str) -> str:
    text = "".join(
        char if char.isprintable() and char not in '<>:"|?*\\' else "_" for char in part
    )
    text = "_" + text[1:] if text[0] in ".-" else text
    while len(text.encode()) > _LONGEST:
        text = text[:-1]
    return text


@contextlib.contextmanager
def replaced_file(path: Path, start: bytes, end: bytes = b"") -> Iterator[BinaryIO]:
    """A file that appears when it is complete.

    Args:
        path: New, empty, or of an earlier export.
        start: How such a file starts.
        end: What its last megabyte holds.

    Raises:
        OSError: It cannot be written.
        ValueError: There is another file, or another process writes it.
    """
    if path.exists():
        with open_regular(path) as old:
            found = old.read(len(start))
            old.seek(max(0, path.stat().st_size - (1 << 20)))
            if found and not (found == start and end in old.read()):
                raise ValueError(f"{path} is no earlier export. Choose another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    file = io.BufferedWriter(open_alone(part))
    try:
        file.truncate(0)
        yield cast(BinaryIO, file)
        file.flush()
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        file.close()
