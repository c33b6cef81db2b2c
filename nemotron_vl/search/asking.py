# SPDX-License-Identifier: Apache-2.0
"""The pages that were found are drawn, ranked and asked about."""

import asyncio
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..checkpoints.tiler import Tiler
from ..documents.finding import is_url
from ..documents.pages import Page
from ..documents.pages_again import is_away, pages_again
from ..documents.process import PageProcess
from ..documents.reading import ServerFailure, find_model, read_answers
from ..documents.requests import Question
from ..documents.results import Record, Results
from .ranking import find_ranker
from .store import Hit, Store

if TYPE_CHECKING:
    import openai

_COPIES = 4  # that are expected of a page at most, on average

CONTEXT = 16384  # tokens of the chat model, if the server does not say it


@dataclass
class FoundPage:
    """A page that was found.

    Args:
        hit: What the index says.
        page: As it was drawn; ``None`` if it was not.
        score: Of the ranking model; ``None`` if it did not rank the page.
        error: Why the page could not be ranked or asked about.
        asked: Whether the answer is about it, too.
        refused: Whether its document is not opened, see `refuse`.
        copies: The page in equal files, which was found, too.
    """

    hit: Hit
    page: Page | None = field(default=None, repr=False)
    score: float | None = None
    error: str | None = None
    asked: bool = False
    refused: bool = False
    copies: list[Hit] = field(default_factory=list)

    @property
    def place(self) -> tuple[str, int]:
        return self.hit.file, self.hit.page

    def __str__(self) -> str:
        return f"{self.hit.file} p. {self.hit.page}"


def find_pages(
    store: Store,
    vector: Sequence[float],
    most: int,
    places: Iterable[str] | None,
    exact: bool = False,
) -> list[FoundPage]:
    """The pages that are most like a vector, best first, those of equal files as one.

    Args:
        store: The index.
        vector: Of the question.
        most: Most pages.
        places: See `refuse`; ``None`` if no document is opened.
        exact: See `Store.nearest`.
    """
    taken = _COPIES * most
    while True:
        hits = store.nearest(vector, taken, exact)
        found = [FoundPage(hit) for hit in hits if hit.page]
        if places is not None:
            refuse(found, places)
        found = without_copies(found)
        if len(found) >= most or len(hits) < taken:
            return found[:most]
        taken *= _COPIES  # a page has many copies


def without_copies(found: Iterable[FoundPage]) -> list[FoundPage]:
    """Each page once: those of equal files are one, unless they are refused."""
    kept: dict[Any, FoundPage] = {}
    for one in found:
        file = one.hit.file if one.refused else one.hit.source.get("sha256")
        first = kept.setdefault((file or one.hit.file, one.hit.page), one)
        # Two commands may have added a page twice.
        listed = [first.hit.file, *(copy.file for copy in first.copies)]
        if one.hit.file not in listed:
            first.copies.append(one.hit)
    return [*kept.values()]


def refuse(found: Iterable[FoundPage], places: Iterable[str]) -> None:
    """Note the pages whose documents are not opened. An index may name any file.

    Args:
        found: Pages.
        places: Where documents with absolute names may be: folders, files and URLs.
    """
    places = [place.rstrip("/") for place in places]
    for one in found:
        name, source = one.hit.file, one.hit.source
        if not isinstance(source.get("bytes"), int) or not source.get("sha256"):
            one.error = "The index does not say what the document was."
        elif (is_url(name) or os.path.isabs(name)) and not _is_below(name, places):
            one.error = "The document is not below a folder that was given (--root)."
        one.refused = one.error is not None


def _is_below(name: str, places: Iterable[str]) -> bool:
    # In a URL, what follows `::` is another one, and a server may decode `%2e`.
    parts = re.split(r"[/\\]", unquote(name) if is_url(name) else name)
    if ".." in parts or (is_url(name) and "::" in name):
        return False
    return any(name == place or name.startswith(f"{place}/") for place in places)


def draw(found: Iterable[FoundPage], process: PageProcess, root: str | None) -> None:
    """Draw pages, unless their documents have changed or are gone.

    If the document of a page is gone or has changed, an equal one is taken.

    Args:
        found: Pages without an image.
        process: That draws.
        root: Folder of the documents whose names are relative.
    """
    opened = {one.place: one for one in found if not one.refused}
    for page in _draw_again((one.hit for one in opened.values()), process, root):
        one = opened[page.file, page.number or 0]
        one.page, one.error = page, page.error
    for one in opened.values():
        copies = one.copies if one.page and is_away(one.page) else []
        for copy in copies:
            (page,) = _draw_again([copy], process, root)
            if page.error is None:
                one.copies = [hit for hit in (one.hit, *copies) if hit is not copy]
                one.hit, one.page, one.error = copy, page, None
                break


def _draw_again(
    hits: Iterable[Hit], process: PageProcess, root: str | None
) -> Iterator[Page]:
    wanted: dict[str, list[Hit]] = {}
    for hit in hits:
        wanted.setdefault(hit.file, []).append(hit)
    listed = (
        (file, [hit.page for hit in pages], pages[0].source)
        for file, pages in wanted.items()
    )
    yield from pages_again(process, listed, root)


async def rank(
    client: "openai.AsyncOpenAI",
    question: str,
    found: Sequence[FoundPage],
    at_once: int = 8,
    timeout: float = 1800,
    ended: asyncio.Future | None = None,
    image_tokens: int = 0,
) -> list[FoundPage]:
    """Pages by their scores, best first. Those without one follow in their order.

    Args:
        client: Client of a server of a ranking model.
        question: The question.
        found: Pages that were drawn.
        at_once: Most requests at a time.
        timeout: Seconds for an answer, with all retries.
        ended: See `read_answers`.
        image_tokens: See `Ranker`.

    Raises:
        ServerFailure: The server does not answer.
        ValueError: It has no rerank API, refuses the question, or ranks no page.
    """
    ranker = await find_ranker(client, question, timeout, image_tokens)
    by_place = {one.place: one for one in found}
    groups = ((page,) for page in _drawn(found))
    async for record in read_answers(client, ranker, groups, at_once, timeout, ended):
        one = by_place[record["file"], record["page"]]
        one.score, one.error = record.get("score"), record.get("error")
    if found and all(one.score is None for one in found):
        raise ValueError("No page could be ranked; each has its reason.")
    return sorted(found, key=lambda one: (one.score is None, -(one.score or 0)))


async def answer(
    client: "openai.AsyncOpenAI",
    question: Question,
    found: Sequence[FoundPage],
    tiler: Tiler,
    most: int,
    timeout: float = 1800,
    ended: asyncio.Future | None = None,
) -> tuple[str, str | None]:
    """What a server answers about the best pages that fit its context.

    A page that fits only without the better ones is left out, and smaller ones are
    taken in its place.

    Args:
        client: Client of a server of the chat model.
        question: What is asked.
        found: Pages that were drawn, best first. Those that are asked about are noted.
        tiler: How the server cuts images.
        most: Most pages.
        timeout: Seconds for an answer, with all retries.
        ended: See `read_answers`.

    Returns:
        The answer, and a sentence if it was cut.

    Raises:
        ServerFailure: The server does not answer, or not about these pages.
        ValueError: No page fits, or the server refuses the question.
    """
    served = await find_model(client, question, timeout=timeout)
    context = room = served.room(CONTEXT)
    group, too_large = list[Page](), dict[tuple[str, int | None], str]()
    for page in _drawn(found):
        if len(group) == most:
            break
        tokens = tiler.describe(*page.size, "fast")["prompt_tokens"]
        if tokens > context:
            too_large[page.file, page.number] = (
                f"It is not asked about: its {tokens} tokens do not fit the context "
                f"of {served.model}, which has room for {context}."
            )
        elif tokens <= room:
            room -= tokens
            group.append(page)
    for one in found:
        one.error = too_large.get(one.place, one.error)
    if not group:
        raise ValueError("No page can be asked about: none is drawn and fits.")
    groups = iter([group])
    (record,) = [
        r async for r in read_answers(client, served, groups, 1, timeout, ended)
    ]
    if "error" in record:
        raise ServerFailure(f"The pages have no answer. {record['error']}")
    places = {(page.file, page.number) for page in group}
    for one in found:
        one.asked = one.place in places
    return record["answer"], record.get("cut")


def _drawn(found: Iterable[FoundPage]) -> Iterator[Page]:
    return (one.page for one in found if one.page and one.page.error is None)


def results(
    question: str,
    text: str | None,
    cut: str | None,
    found: Iterable[FoundPage],
    root: str | None,
) -> Results:
    """The pages as records for the page for checking, best first.

    Args:
        question: The question.
        text: The answer.
        cut: See `answer`.
        found: Pages.
        root: Folder of the documents whose names are relative.
    """
    records = []
    for rank, one in enumerate(found, 1):
        if one.refused:
            continue
        file, page = one.place
        how = f"Page {rank} for \u201c{question}\u201d; cosine {one.hit.score:.3f}"
        if one.score is not None:
            how += f", score {one.score:.3f}"
        record = Record(file, page, text if one.asked else None, pages=[page])
        record.cut = cut if one.asked else None
        record.source, record.found = dict(one.hit.source), f"{how}."
        records.append(record)
    settings: dict[str, Any] = {"question": question}
    return Results(settings, root, records)
