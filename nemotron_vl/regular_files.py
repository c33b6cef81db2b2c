# SPDX-License-Identifier: Apache-2.0
"""Files of a user's folder: only regular ones are read, and only so many bytes.

A folder from elsewhere may hold a pipe, which is never done opening, a link to a device
that never ends, or a file that is larger than the memory.
"""

import contextlib
import io
import stat
from collections.abc import Iterator
from pathlib import Path

from vllm_nemotron_vl.multimodal.nemotron_vl_files import without_waiting

# Of a data file. A configuration has kilobytes, the tokenizer of Llama 3 has 17 MB.
MOST_BYTES = 1 << 23
MOST_TOKENIZER_BYTES = 1 << 25


def check_regular(file: Path) -> None:
    """Refuse a file that a library opens by its name.

    Raises:
        OSError: It is missing.
        ValueError: It is a pipe, a device, a socket or a folder; names the file.
    """
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file} is not a regular file.")


def open_regular(file: Path) -> io.BufferedReader:
    """Open a file for reading, without waiting for the writer of a pipe.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is not a regular file; names it.
    """
    check_regular(file)
    # A pipe may have taken its place meanwhile.
    return open(file, "rb", opener=without_waiting)


def read_text(file: Path, most: int = MOST_BYTES) -> str:
    """The content of a regular file in UTF-8.

    Args:
        file: Its name.
        most: Limit in bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file, is larger, or is not UTF-8; names it.
    """
    with open_regular(file) as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise _too_large(file, most)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8: {error}") from error


def check_size(file: Path, most: int) -> None:
    """Refuse a file of more than ``most`` bytes, which a library reads as a whole.

    Raises:
        OSError: It is missing.
        ValueError: It is larger; names the file.
    """
    if file.stat().st_size > most:
        raise _too_large(file, most)


@contextlib.contextmanager
def naming(file: Path) -> Iterator[Path]:
    """Name the file that is written in errors that do not, such as of a full disk."""
    try:
        yield file
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def _too_large(file: Path, most: int) -> ValueError:
    return ValueError(f"{file} has more than {most >> 20} MiB.")
