# SPDX-License-Identifier: Apache-2.0
"""Records in a file that cannot be appended to, such as one of an object store."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from .finding import file_system
from .records import PageRecords, Record

_SECONDS = 60.0  # between uploads


class RemoteRecords(PageRecords):
    """Records in a local copy, which is written back each minute and at the end.

    A process that is killed loses the records since then. If they cannot be written
    back, the copy stays. Nothing keeps two processes from writing to one file.

    Args:
        url: Of fsspec, such as ``s3://bucket/answers.jsonl``.
        more: See `PageRecords`.

    Raises:
        OSError: It cannot be read or written.
        ValueError: See `PageRecords`; or a package for such URLs is missing.
    """

    def __init__(self, url: str, *more: Any, **options: Any) -> None:
        self._system, self._remote = file_system(url)
        folder = tempfile.mkdtemp(prefix="nemotron-vl-")
        copy = Path(folder, "answers.jsonl")
        try:
            if self._system.exists(self._remote):
                self._system.get_file(self._remote, str(copy))
            super().__init__(copy, *more, **options)
        except BaseException:
            shutil.rmtree(folder)
            raise
        self.name = url
        self._written = time.monotonic()

    def append(self, record: Record) -> None:
        super().append(record)
        if time.monotonic() - self._written > _SECONDS:
            self._written = time.monotonic()
            with contextlib.suppress(Exception):  # it is tried again
                self._write_back()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        try:
            self._write_back()
        except Exception as error:  # each file system has its own
            raise OSError(
                f"{self.name} cannot be written: {error}. The records are in "
                f"{self.path}."
            ) from error
        shutil.rmtree(self.path.parent)

    def _write_back(self) -> None:
        self._system.put_file(str(self.path), self._remote)
