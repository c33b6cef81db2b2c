# SPDX-License-Identifier: Apache-2.0
"""A mistake in the options makes all pages fail: the first ones say so."""

import contextlib
import re
from collections.abc import AsyncGenerator

from .known import Record
from .reading import ServerFailure

_ALIKE = 5  # refused pages at the start of a run that end it
_REFUSED = re.compile("The server answered 4")


async def unless_alike(
    answers: AsyncGenerator[Record, None],
) -> AsyncGenerator[Record, None]:
    """The records, unless the server refuses the first pages for the same cause.

    Raises:
        ServerFailure: It does. None of them has a record.
    """
    held: list[Record] | None = []
    async with contextlib.aclosing(answers):
        async for record in answers:
            error = record.get("error", "")
            if held is not None and _REFUSED.match(error):
                held.append(record)
                # Figures may differ, such as tokens of the page.
                causes = {re.sub(r"\d+", "0", r["error"]) for r in held}
                if len(causes) == 1 and len(held) == _ALIKE:
                    raise ServerFailure(
                        f"The first {_ALIKE} pages were refused alike, so the cause "
                        f"may be an option and not the pages. {error} (--keep-going "
                        "reads the others.)"
                    )
                if len(causes) == 1:
                    continue
                record = held.pop()
            elif held is not None and (
                "blank" in record or ("error" in record and "answer" not in record)
            ):
                yield record
                continue
            for earlier in held or ():
                yield earlier
            held = None
            yield record
        for earlier in held or ():
            yield earlier
