# SPDX-License-Identifier: Apache-2.0
"""Types of arguments of the command line."""

import math
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


def amount(most: float = math.inf) -> Callable[[str], float]:
    """A number above 0 and at most ``most``.

    Returns:
        A function that reads it, as of `number`.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most or value == math.inf:
            limit = f" of at most {most:g}" if most < math.inf else ""
            raise ArgumentTypeError(f"{text!r} is not a number above 0{limit}")
        return value

    return parse
