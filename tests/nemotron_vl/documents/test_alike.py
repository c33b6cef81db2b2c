"""A run ends if the first pages are refused for the same cause, and else loses none."""

import asyncio

import pytest

from nemotron_vl.documents.alike import unless_alike
from nemotron_vl.documents.reading import ServerFailure

LONG = {"error": "The server answered 400: 4096 tokens are too many."}
LONGER = {"error": "The server answered 400: 5120 tokens are too many."}
MODEL = {"error": "The server answered 404: no such model."}
BUSY = {"error": "The server answered 503: busy."}
DAMAGED = {"error": "It is damaged."}
BLANK = {"answer": "", "blank": True}
GOOD = {"answer": "Total 12"}
UNFIT = {"answer": "Total 12", "error": "The answer does not follow the schema."}


def passed(records):
    """What came until the end, and whether the run was ended."""

    async def run():
        async def answers():
            for record in records:
                yield record

        try:
            async for record in unless_alike(answers()):
                found.append(record)
        except ServerFailure:
            return True
        return False

    found: list = []
    return found, asyncio.run(run())


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([LONG, LONGER, LONG, LONG, LONGER, GOOD], []),
        (
            [BLANK, LONG, DAMAGED, LONG, BLANK, LONG, LONG, LONG],
            [BLANK, DAMAGED, BLANK],
        ),
        ([BUSY, LONG, LONG, LONG, LONG, LONG], [BUSY]),
    ],
)
def test_pages_that_are_refused_alike_end_a_run(records, expected):
    assert passed(records) == (expected, True)


@pytest.mark.parametrize(
    "records",
    [
        [LONG, LONG, LONG, LONG],
        [LONG, LONG, LONG, LONG, GOOD, LONG, LONG],
        [LONG, LONG, LONG, LONG, UNFIT, *[LONG] * 5],
        [LONG, LONG, LONG, LONG, MODEL, MODEL, MODEL, MODEL, MODEL],
        [LONG, MODEL, LONG, LONG, LONG, LONG, LONG],
        [GOOD, *[LONG] * 5],
        [],
    ],
)
def test_other_pages_all_have_their_records(records):
    assert passed(records) == (records, False)


def test_what_was_held_comes_after_what_was_not():
    records = [LONG, BLANK, LONG, GOOD]
    assert passed(records) == ([BLANK, LONG, LONG, GOOD], False)
