# SPDX-License-Identifier: Apache-2.0
"""A file of records, one for each page, that survives the death of its writer."""

import errno
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Collection, Container, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from vllm_nemotron_vl.config.nemotron_vl_names import plugin_version

from ..regular_files import check_regular, naming
from .finding import is_url
from .known import Counts, Known, Record

_STARTS = (b'{"settings": ', b'{"file": ')  # of the first line, and of the others
_MOST_BYTES = 1 << 26  # of a line, far more than a server's answer takes
_MOST_SHOWN = 80  # characters of a setting


class Records:
    """Records on standard output: a head with the settings, then JSON lines.

    A record has ``file``, ``page`` (from 1; null for a document that cannot be
    opened), and ``answer`` or ``error``. ``source`` is the state of the file that was
    read, see `Source`. All answers are of the settings in the head.

    Args:
        settings: What the answers depend on. ``model`` is ``None`` if it is not known
            yet, see `settle`.
        root: Folder that the names of the documents are relative to.

    ``appended`` is the number of new records.
    """

    name = "standard output"
    kept = False  # whether they can be read again
    _holds = "answers"

    def __init__(self, settings: dict[str, Any], root: str | None = None) -> None:
        self._settings = {"model": None, **settings}
        self._root = root
        self._has_head = False
        self._known: dict[str, Known] = {}
        self._untidy = False
        self.appended = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Record]:
        """The records that can be read again."""
        return iter(())

    def about(self, files: Container[str]) -> Iterable[Record]:
        """The records of some documents, as far as they can be read again."""
        return [record for record in self if record["file"] in files]

    def equals(self, copy: str, file: str) -> bool:
        """Whether a document has a record of its present state for each of another."""
        known, others = self._known.get(file), self._known.get(copy)
        return known is None or (others is not None and others.equals(known))

    def done(self, file: str, page: int | None) -> bool:
        """Whether there is a record for a page."""
        known = self._known.get(file)
        return known is not None and known.done(page)

    def source(self, file: str) -> dict[str, Any] | None:
        """The state of a document that its records are about."""
        known = self._known.get(file)
        return known.source if known and not known.outdated else None

    def outdate(self, file: str) -> None:
        """Note that a document has changed: none of its pages is done."""
        self._known[file].outdated = True

    def counts(self, files: Collection[str] | None = None) -> Counts:
        """Of the records of some documents, or of all."""
        names = self._known if files is None else self._known.keys() & set(files)
        found = (self._known[name].counts() for name in names)
        return Counts(*map(sum, zip(Counts(), *found, strict=True)))

    def settle(self, model: str) -> None:
        """Note which model answers.

        Raises:
            ValueError: There are answers of another one.
        """
        before = self._settings["model"]
        if self._has_head and before not in (None, model):
            raise ValueError(self._other({"model": before}, {"model": model}))
        self._settings["model"] = model

    def append(self, record: Record) -> None:
        """Write a record.

        Raises:
            OSError: It cannot be written.
            ValueError: There is one for this page.
        """
        self._check_new(record)
        line = _line({"file": record["file"], "page": record["page"], **record})
        self._write(line if self._has_head else self._head() + line)
        self._has_head = True
        self.appended += 1
        self._note(record)

    def _check_new(self, record: Record) -> None:
        file, page = record["file"], record["page"]
        if self.done(file, page):
            raise ValueError(f"{self.name} has page {page} of {file} already.")

    def _write(self, line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    def _head(self) -> bytes:
        head = {"settings": self._settings, "version": plugin_version()}
        return _line({**head, "root": self._root})

    def _note(self, record: Record) -> bool:
        return self._known.setdefault(record["file"], Known()).add(record)

    def check_root(self, root: str | None) -> None:
        """Refuse another root while the one before exists.

        Raises:
            ValueError: It does.
        """
        if root and root != self._root and (is_url(root) or os.path.exists(root)):
            raise ValueError(
                f"{self.name} has {self._holds} of documents below {root}, not "
                f"{self._root}. Choose another one."
            )

    def _other(self, before: dict[str, Any], now: dict[str, Any]) -> str:
        differ = [
            f"{name.replace('_', ' ')} {_short(before.get(name))}, not {_short(value)}"
            for name, value in sorted(now.items())
            if value != before.get(name)
        ]
        return (
            f"{self.name} has {self._holds} with other settings: {'; '.join(differ)}. "
            "Choose another one."
        )


class PageRecords(Records):
    """Records in a file. Each is on the disk before the next.

    A process that is killed may leave half a line. The next one removes it and does
    that page again. A lock keeps two processes from writing to one file. Records that
    newer ones replace, and those about an earlier state of a document, leave when the
    file is closed or opened.
    """

    kept = True

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        root: str | None = None,
        changeable: Collection[str] = (),
    ) -> None:
        """Open a file of records, or create it.

        Args:
            path: The file.
            settings: See `Records`.
            root: See `Records`. It may be another one than before if that folder is
                gone: it has moved.
            changeable: Settings that may differ from those of the file, and replace
                them.

        Raises:
            OSError: The file cannot be written.
            ValueError: Another process writes to it, it is no file of records, or
                its records have other settings; names them.
        """
        super().__init__(settings, root)
        self.path = path = Path(os.path.realpath(path))
        self.name = str(path)
        self._changeable = set(changeable)
        self._file = open_alone(path)
        try:
            self._recover()
            self._tidy()
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._tidy()
        finally:
            self._file.close()

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self._lines() if "settings" not in record)

    def retry(self, files: Collection[str], keys: Collection[str]) -> None:
        """Have the pages of some records done again. The records stay until then.

        Args:
            files: Documents.
            keys: The records have one of these, such as ``error``.
        """
        self._tidy()  # records that others have replaced do not count
        for record in self:
            if record["file"] in files and not record.keys().isdisjoint(keys):
                self._known[record["file"]].retry(record["page"])

    def append(self, record: Record) -> None:
        known = self._known.get(record["file"])
        opens_again = known is not None and known.opens_again()
        super().append(record)
        if opens_again:  # the next start would leave the document out
            self._tidy()

    def _note(self, record: Record) -> bool:
        last = super()._note(record)
        self._untidy |= not last
        return last

    def _tidy(self) -> None:
        """Put a copy without the records that no longer count in the file's place."""
        if not self._untidy:
            return
        last = {(r["file"], r["page"]): number for number, r in enumerate(self)}
        part = self.path.with_name(self.path.name + ".part")
        copy = open_alone(part)
        try:
            with naming(part):
                copy.truncate(0)
                shutil.copymode(self.path, part)
                with io.BufferedWriter(io.FileIO(os.dup(copy.fileno()), "ab")) as lines:
                    lines.write(self._head())
                    for number, record in enumerate(self):
                        place = record["file"], record["page"]
                        known = self._known[record["file"]]
                        if last[place] == number and known.has(record):
                            lines.write(_line(record))
                os.fsync(copy.fileno())
                part.replace(self.path)
        except BaseException:
            copy.close()
            part.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file, self._untidy = copy, False

    def _write(self, line: bytes) -> None:
        with naming(self.path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())

    def _recover(self) -> None:
        """Note which pages are done, and remove half a line at the end."""
        end = 0
        for line, record in self._lines():
            end += len(line)
            if "settings" in record:
                self._compare(record)
                self._has_head = True
            else:
                self._note(record)
        self._file.truncate(end)

    def _compare(self, head: dict[str, Any]) -> None:
        """Refuse settings other than those of the file, and take its model."""
        before, now = head["settings"], self._settings
        if now["model"] is None:
            now["model"] = before.get("model")
        kept = {name: now[name] for name in now.keys() - self._changeable}
        if any(value != before.get(name) for name, value in kept.items()):
            raise ValueError(self._other(before, kept))
        root = head.get("root")
        self.check_root(root)
        self._untidy = now != before or root != self._root

    def _lines(self) -> Iterator[tuple[bytes, Record]]:
        """The complete lines of the file, and what they hold."""
        with self.path.open("rb") as lines:
            line_by_line = iter(partial(lines.readline, _MOST_BYTES), b"")
            for number, line in enumerate(line_by_line, 1):
                start = _STARTS[number > 1]
                if line.endswith(b"\n"):
                    yield line, self._parse(line, number)
                elif not line.startswith(start[: len(line)]):
                    raise ValueError(self._foreign(number))

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            if number == 1:
                record["settings"].keys()
            else:
                record["file"], record["page"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(self._foreign(number)) from e
        return record

    def _foreign(self, number: int) -> str:
        return (
            f"{self.path} is no file of answers of this version: line {number}. Choose "
            "another file."
        )


def open_alone(path: Path) -> io.FileIO:
    """Open a file for appending, unbuffered, as its only writer.

    Raises:
        OSError: It cannot be written.
        ValueError: Another process writes to it, or it is not a regular file.
    """
    if path.exists():
        check_regular(path)
    file = path.open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have put its file in this place meanwhile.
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise OSError
    except OSError as error:
        file.close()
        raise ValueError(f"Another process writes to {path}.") from error
    return file


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:_MOST_SHOWN]!r} ..." if len(text) > _MOST_SHOWN else repr(text)
