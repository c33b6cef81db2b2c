# SPDX-License-Identifier: Apache-2.0
"""Files of the server that requests name: regular ones only, of some size."""

import os
import stat
from pathlib import Path


def read_file(file: Path, most: int) -> bytes:
    """The content of a regular file.

    Args:
        file: Its name. Another process may put something else in its place.
        most: Limit in bytes; 0 for none.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is a pipe or a device, or has more bytes.
    """
    with open(file, "rb", opener=without_waiting) as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        if 0 < most < found.st_size:
            raise ValueError(
                f"it has {found.st_size} bytes; at most {most} are allowed"
            )
        return opened.read(found.st_size)


def without_waiting(name: str, flags: int) -> int:
    """An ``opener`` of ``open`` that does not wait for the writer of a pipe."""
    return os.open(name, flags | os.O_NONBLOCK)
