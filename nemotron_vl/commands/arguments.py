# SPDX-License-Identifier: Apache-2.0
"""Types of arguments of the command line."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Container
from importlib.util import find_spec
from pathlib import Path

from ..regular_files import read_text


def number(most: int | None = None) -> Callable[[str], int]:
    """A whole number of at least 1 and at most ``most``.

    Returns:
        A function that reads it. It raises ``argparse.ArgumentTypeError`` for
        anything else.
    """

    def parse(text: str) -> int:
        if not text.isdigit() or not 1 <= int(text) <= (most or int(text)):
            limit = f"from 1 to {most}" if most else "of at least 1"
            raise ArgumentTypeError(f"{text!r} is not a number {limit}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """A number above 0.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def http_url(text: str) -> str:
    """The URL of a server.

    Raises:
        argparse.ArgumentTypeError: It has no scheme, or another one than http(s).
    """
    if not text.lower().startswith(("http://", "https://")):
        raise ArgumentTypeError(f"{text!r} does not begin with http:// or https://")
    return text


def url_or_model(text: str) -> str:
    """The URL of a server, or a folder or hub name, which has no colon.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    return http_url(text) if ":" in text and not Path(text).exists() else text


def read_passwords(file: Path | None) -> tuple[str, ...]:
    """The lines of a file that are not empty.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no text in UTF-8.
    """
    return tuple(filter(None, read_text(file).splitlines())) if file else ()


def check_packages(command: str, *packages: str) -> None:
    """Name the packages that are missing.

    Raises:
        RuntimeError: At least one is.
    """
    if missing := " ".join(name for name in packages if not find_spec(name)):
        raise RuntimeError(
            f"`nemotron-vl {command}` needs more packages: pip install {missing} "
            "(extras of this package)"
        )


class Ranges(Container[int]):
    """Numbers such as ``1-3,7,10-``.

    Raises:
        argparse.ArgumentTypeError: They are not of this form.
    """

    def __init__(self, text: str) -> None:
        self._ranges = []
        for part in text.split(","):
            match = re.fullmatch(r"(\d{1,9})(-(\d{1,9})?)?", part.strip(), re.ASCII)
            first = int(match[1]) if match else 0
            last = int(match[3] or 10**9) if match and match[2] else first
            if not 1 <= first <= last:
                raise ArgumentTypeError(f"{text!r} is not like 1-3,7,10-")
            self._ranges.append(range(first, last + 1))

    def __contains__(self, value: object) -> bool:
        return any(value in numbers for numbers in self._ranges)
