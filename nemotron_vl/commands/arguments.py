# SPDX-License-Identifier: Apache-2.0
"""Types of arguments of the command line."""

from argparse import ArgumentTypeError
from collections.abc import Callable


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
