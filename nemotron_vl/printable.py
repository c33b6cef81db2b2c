# SPDX-License-Identifier: Apache-2.0
"""Texts for a terminal.

Names of files, messages of a server and data of a checkpoint may hold sequences that
clear the screen, change its title or turn the direction of writing.
"""

import sys
import unicodedata
from typing import TextIO

# Control, format, surrogate and private characters, and those that end a line.
_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def printable(text: object, kept: str = "") -> str:
    """A text whose control characters are shown as escapes, such as ``\\u001b``.

    Args:
        text: What is not from this program.
        kept: Characters that stay.
    """
    return "".join(
        char
        if char in kept or unicodedata.category(char) not in _ESCAPED
        # As in JSON, so that JSON stays JSON.
        else f"\\u{ord(char):04x}"
        if ord(char) < 0x10000
        else f"\\U{ord(char):08x}"
        for char in str(text)
    )


def show(text: object, file: TextIO | None = None) -> None:
    """Print a text of one or more lines at once, see `printable`.

    Args:
        text: What is printed.
        file: Stream of a terminal; standard output by default.
    """
    print(printable(text, "\n\t"), file=file or sys.stdout, flush=True)
