# SPDX-License-Identifier: Apache-2.0
"""Records in a file that cannot be appended to, such as one of an object store."""

import tempfile
import time
from pathlib import Path
from typing import Any

from .finding import file_system
from .records import PageRecords, Record

_SECONDS = 60.0  # between uploads


class RemoteRecords(PageRecords):
    """Records in a local copy, which is written back each minute and at the end.

    A process that is killed loses the records since then. Nothing keeps two processes
    from writing to one file.

    Args:
        url: Of fsspec, such as ``s3://bucket/answers.jsonl``.
        more: See `PageRecords`.

    Raises:
        OSError: It cannot be read or written.
        ValueError: See `PageRecords`; or a package for such URLs is missing.
    """

    def __init__(self, url: str, *more: Any, **options: Any) -> None:
        self._system, self._remote = file_system(url)
        self._folder = tempfile.TemporaryDirectory(prefix="nemotron-vl-")
        copy = Path(self._folder.name, "answers.jsonl")
        try:
            if self._system.exists(self._remote):
                self._system.get_file(self._remote, str(copy))
            super().__init__(copy, *more, **options)
        except BaseException:
            self._folder.cleanup()
            raise
        self.name = url
        self._written = time.monotonic()

    def append(self, record: Record) -> None:
        super().append(record)
        if time.monotonic() - self._written > _SECONDS:
            self._write_back()

    def __exit__(self, *_: object) -> None:
        try:
            self._write_back()
        finally:
            super().__exit__()
            self._folder.cleanup()

    def _write_back(self) -> None:
        try:
            self._system.put_file(str(self.path), self._remote)
        except Exception as error:  # each file system has its own
            raise OSError(f"{self.name} cannot be written: {error}") from error
        self._written = time.monotonic()
