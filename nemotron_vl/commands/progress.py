# SPDX-License-Identifier: Apache-2.0
"""What commands that read documents say while they run."""

import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any

from tqdm import tqdm

from ..documents.finding import Folders
from ..documents.job import Job
from ..documents.records import Records
from ..printable import printable, show

_SUFFIXES = 8  # of files that are not read, that are listed


def tell(text: str) -> None:
    show(printable(f"nemotron-vl: {text}"), sys.stderr)


def beside(bar: tqdm) -> Callable[[str], None]:
    """`tell`, for as long as there is a bar."""
    return lambda text: bar.write(printable(f"nemotron-vl: {text}"), sys.stderr)


async def append_all(
    answers: AsyncGenerator[dict[str, Any], None],
    records: Records,
    bar: tqdm,
    said: Callable[[str], None],
) -> None:
    """Append a record for each page, and say what is wrong with its answer.

    Args:
        answers: The records.
        records: Where they go.
        bar: Counts the pages.
        said: Called with a sentence.
    """
    async with contextlib.aclosing(answers):
        async for record in answers:
            records.append(record)
            bar.update(len(record.get("pages", [None])))
            for key in ("error", "cut"):
                if key in record:
                    said(place_of(record["file"], record["page"], record[key]))
                    break


def place_of(file: str, number: int | None, text: str) -> str:
    return f"{file}{'' if number is None else f', page {number}'}: {text}"


def left_out(found: Folders) -> str:
    """Which files are not read, by suffix."""
    if not found.left_out:
        return ""
    kinds = found.left_out.most_common(_SUFFIXES)
    listed = [f"{n} {suffix or 'without a suffix'}" for suffix, n in kinds]
    if others := found.left_out.total() - sum(n for _, n in kinds):
        listed.append(f"{others} others")
    return f"; not read: {', '.join(listed)}"


def count_pages(job: Job, found: Folders) -> int | None:
    """The number of pages that are read, if a terminal shows progress."""
    if not sys.stderr.isatty() or any(document.remote for document in found.documents):
        return None
    return sum(1 for _ in tqdm(job.measured(), "counting pages", leave=False))


def progress(total: int | None) -> tqdm:
    """A bar with rate and time left, on a terminal only."""
    return tqdm(total=total, unit="page", disable=total is None)
