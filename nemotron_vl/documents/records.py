# SPDX-License-Identifier: Apache-2.0
"""A file of records, one for each page, that survives the death of its writer."""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..regular_files import check_regular

_START = b'{"file": '  # of each line
_MOST_BYTES = 1 << 26  # of a line, far more than a server's answer takes


class PageRecords:
    """JSON lines, a record for each page. Each is on the disk before the next.

    A record has ``file``, ``page`` (from 1; null for a document that cannot be
    opened), ``answer`` or ``error``, and ``question``, the digest of what was asked.

    A process that is killed may leave half a line. The next one removes it and does
    that page again. A lock keeps two processes from writing to one file.

    ``errors`` is the number of records with ``error``.
    """

    def __init__(
        self, path: Path, question: str, retry_errors: Collection[str] = ()
    ) -> None:
        """Open a file of records, or create it.

        Args:
            path: The file.
            question: Digest of what is asked.
            retry_errors: Files whose records of errors are removed, so that their
                pages are done again.

        Raises:
            OSError: The file cannot be written.
            ValueError: Another process writes to it, it is no file of records, or
                its records answer another question.
        """
        self.path = path = Path(os.path.realpath(path))
        self.errors = 0
        self._question = question
        self._done: dict[str, set[int | None]] = {}
        self._file = open_alone(path)
        try:
            if retry_errors:
                self._drop_errors(retry_errors)
            self._recover()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "PageRecords":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return sum(map(len, self._done.values()))

    def done(self, file: str, page: int | None) -> bool:
        """Whether there is a record for a page."""
        return page in self._done.get(file, ())

    def append(self, record: dict[str, Any]) -> None:
        """Write a record and wait until it is on the disk.

        Raises:
            OSError: It cannot be written.
            ValueError: There is one for this page.
        """
        file, page = record["file"], record["page"]
        if self.done(file, page):
            raise ValueError(f"{self.path} has page {page} of {file} already.")
        record = {"file": file, "page": page, **record, "question": self._question}
        line = json.dumps(record).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(f"{self.path}: the disk is full.")
        os.fsync(self._file.fileno())
        self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        self._done.setdefault(record["file"], set()).add(record["page"])
        self.errors += "error" in record

    def _recover(self) -> None:
        """Note which pages are done, and remove half a line at the end."""
        end = 0
        for line, record in self._lines():
            end += len(line)
            self._note(record)
        self._file.truncate(end)

    def _drop_errors(self, files: Collection[str]) -> None:
        """Put a copy without the records of errors in the place of the file."""
        part = self.path.with_name(self.path.name + ".part")
        copy = open_alone(part)
        try:
            copy.truncate(0)
            shutil.copymode(self.path, part)
            for line, record in self._lines():
                if "error" not in record or record["file"] not in files:
                    copy.write(line)
            os.fsync(copy.fileno())
            part.replace(self.path)
        except BaseException:
            copy.close()
            part.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = copy

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The complete lines of the file and their records."""
        with self.path.open("rb") as lines:
            line_by_line = iter(partial(lines.readline, _MOST_BYTES), b"")
            for number, line in enumerate(line_by_line, 1):
                if line.endswith(b"\n"):
                    yield line, self._parse(line, number)
                elif not line.startswith(_START[: len(line)]):
                    raise ValueError(self._foreign(number))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            question = record["question"]
            record["file"], record["page"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(self._foreign(number)) from error
        if question != self._question:
            raise ValueError(
                f"{self.path} has answers to another question or schema. Choose "
                "another file."
            )
        return record

    def _foreign(self, number: int) -> str:
        return f"{self.path} is no file of answers: line {number}. Choose another file."


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
