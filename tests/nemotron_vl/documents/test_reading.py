"""Answers of a server and its failures, as they come."""

import asyncio

import pytest

from nemotron_vl.documents import reading
from nemotron_vl.documents.pages import Page
from nemotron_vl.documents.requests import Question


def test_answers_that_come_with_a_failure_are_kept(monkeypatch):
    """A failure ends the run. All requests end at once here."""
    numbers, written = range(16), []

    async def read_all() -> None:
        sent, end = [], asyncio.Event()

        async def record(client, served, pages, timeout):
            (page,) = pages
            sent.append(page)
            if len(sent) == len(numbers):
                end.set()
            await end.wait()
            if page.number % 2:
                raise reading.ServerFailure("gone")
            return {"page": page.number}

        monkeypatch.setattr(reading, "_record", record)
        served = reading.Served("fake", None, Question("?", None, 9))
        pages = ((Page("a.pdf", n, b"", "image/png"),) for n in numbers)
        async for answer in reading.read_answers(None, served, pages, 16, 60):
            written.append(answer["page"])

    with pytest.raises(reading.ServerFailure, match="gone"):
        asyncio.run(read_all())
    assert sorted(written) == [n for n in numbers if not n % 2]
