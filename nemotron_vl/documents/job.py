# SPDX-License-Identifier: Apache-2.0
"""All pages of documents are asked about, and each gets a record."""

import asyncio
import contextlib
import itertools
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Container,
    Generator,
    Iterator,
    Mapping,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .alike import unless_alike
from .answers import is_empty
from .equal import equal_files
from .finding import Found, Source, opened_locally
from .pages import Document, Drawing, Page
from .process import MOST_PAGES, PageProcess
from .reading import read_answers
from .records import Record, Records
from .served import Asked

if TYPE_CHECKING:
    import openai

_UNTURNED = "It could not be drawn upright."
_CHANGED = "The file changed while it was read. The next start reads it again."

Place = tuple[str, int | None]


class Options(NamedTuple):
    """How documents are read.

    Args:
        drawing: How pages are drawn.
        most_pages: Limit of a document.
        pages: Numbers of the pages that are read; all if ``None``.
        limit: Most pages that are read now.
        per_document: Ask about as many pages of a document at once as fit.
        context: Tokens of a request and its answer, if the server does not say it.
        rotate: Turn pages whose text layer is not upright, and ask again, turned, where
            an answer is empty.
        text_layer: Keep the text layers of PDFs for what is asked.
        at_once: Most requests at a time.
        timeout: Seconds for an answer, with all retries.
        keep_going: Go on if the first pages are all refused alike.
    """

    drawing: Drawing
    most_pages: int = MOST_PAGES
    pages: Container[int] | None = None
    limit: int | None = None
    per_document: bool = False
    context: int = 16384
    rotate: bool = False
    text_layer: bool = False
    at_once: int = 8
    timeout: float = 1800
    keep_going: bool = False


class Job:
    """Pages without a record are drawn and asked about.

    Args:
        documents: What is read.
        options: How.
        records: Of earlier runs, whose pages are left out. The caller appends the new
            ones.
        tell: Called with a sentence about a document that has changed.
    """

    def __init__(
        self,
        documents: list[Found],
        options: Options,
        records: Records | None = None,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._tell = tell
        self._documents = documents
        self._copies: dict[str, list[Found]] = {}
        if records is not None and records.kept:
            self._documents, self._copies = equal_files(documents, records.source)
        self._records = Records({}) if records is None else records
        self._options = options
        self._sources: dict[str, dict[str, Any]] = {}
        self._process: PageProcess | None = None
        self._started: list[Generator[Page]] = []
        # Pages that are asked again: at which turns, and the record so far.
        self._again: dict[Place, tuple[Collection[int], Record | None]] = {}
        self._due: set[Place] = set()  # of them, at the present turn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process that draws. No thread may wait for a page any more."""
        for pages in self._started:
            pages.close()

    def has_pages(self) -> bool:
        """Whether there is anything to do."""
        with contextlib.closing(self.measured()) as pages:
            return next(pages, None) is not None

    def measured(self) -> Generator[Page]:
        """The pages without a record, with their sizes but without images."""
        return self._pages(0, drawn=False)

    def pages(self, turn: int = 0) -> Generator[Page]:
        """The pages without a record, or those to be asked again at a turn.

        Args:
            turn: In degrees clockwise; 0 for the pages as they are.
        """
        self._started.append(self._pages(turn, drawn=True))
        return self._started[-1]

    def _pages(self, turn: int, drawn: bool) -> Generator[Page]:
        drawing = self._options.drawing._replace(turn=turn)
        with PageProcess(drawing, self._options.most_pages) as self._process:
            read = self._process.read if drawn else self._process.measure
            # Files may change between the measuring and the drawing.
            note = self._note_source if drawn else lambda document, file: None
            self._due = self._due_at(turn)
            names = {name for name, _ in self._due}
            pages = itertools.chain.from_iterable(
                self._pages_of(document, turn, read, note)
                for document in self._documents
                if not turn or document.name in names
            )
            yield from pages if turn else itertools.islice(pages, self._options.limit)

    def _pages_of(
        self,
        document: Found,
        turn: int,
        read: Callable[..., Iterator[Page]],
        note: Callable[[Found, Path], None],
    ) -> Iterator[Page]:
        name = document.name
        if not turn and (
            not self._is_there(document)
            or self._records.done(name, None)
            or self._is_whole(name)
        ):
            return
        try:
            with opened_locally(document) as file:

                def left_out(name: str, number: int | None) -> bool:
                    if number is None:
                        return False
                    left_out = self._left_out(name, number, turn)
                    if not left_out:  # before it is drawn
                        note(document, file)
                    return left_out

                left = self._records.done(name, None)
                for page in read([Document(name, file)], left_out):
                    if page.number is None:
                        if turn:  # it was said at the first turn
                            continue
                        left = True
                        note(document, file)
                    if page.last and name in self._sources:
                        self._sources[name]["pages"] = page.number
                    yield page
                source = None if left else self._sources.get(name)
                if source and not document.remote and _differs(file, source):
                    yield Page(name, None, error=_CHANGED)
        except OSError as error:
            if not turn:
                yield Page(name, None, error=str(error))

    def _is_there(self, document: Found) -> bool:
        """Whether it can be read. If it has changed, its records are forgotten."""
        source, now = self._records.source(document.name), document.examined_again()
        if source is None:
            return True
        if now.bytes is None:
            self._tell(f"{document.name}: it is not there now; its records stay")
            return False
        if now.has_changed(source):
            self._records.outdate(document.name)
            self._tell(f"{document.name}: it has changed and is read again")
        return True

    def _is_whole(self, name: str) -> bool:
        """Whether no page is left of a document, so that it need not be opened."""
        count = (self._records.source(name) or {}).get("pages")
        return count is not None and all(
            self._left_out(name, number, 0) for number in range(1, count + 1)
        )

    def _left_out(self, name: str, number: int, turn: int) -> bool:
        if turn:
            return (name, number) not in self._due
        chosen = self._options.pages
        if chosen is not None and number not in chosen:
            return True
        return self._records.done(name, number)

    def _due_at(self, turn: int) -> set[Place]:
        return {place for place, (turns, _) in self._again.items() if turn in turns}

    def _note_source(self, document: Found, file: Path) -> None:
        if document.name in self._sources:
            return
        source = self._records.source(document.name)
        if source is None:
            modified = document.modified if document.remote else None
            with contextlib.suppress(OSError, ValueError):  # its record says why
                source = Source.of(file, modified)._asdict()
        if source is not None:
            self._sources[document.name] = source

    async def answers(
        self,
        client: "openai.AsyncOpenAI",
        asked: Asked,
        ended: asyncio.Future | None = None,
    ) -> AsyncGenerator[Record, None]:
        """Ask about the pages.

        Args:
            client: Client of the server.
            asked: The model, and what is asked.
            ended: See `read_answers`.

        Yields:
            A record for each, see `read_answers`, to be appended at once.

        Raises:
            ServerFailure: The server answers no page, or refuses the first ones alike.
        """
        options = self._options
        try:
            for turn in (0, 90, 180, 270) if options.rotate else (0,):
                if turn and not self._due_at(turn):
                    continue
                groups = self._groups(self.pages(turn), asked)
                answers = read_answers(
                    client, asked, groups, options.at_once, options.timeout, ended
                )
                if not turn and not options.keep_going:
                    answers = unless_alike(answers)
                async with contextlib.aclosing(answers):
                    async for record in answers:
                        if not options.rotate or self._is_final(record, turn):
                            yield self._with_source(record)
            for (file, page), (_, first) in self._again.items():
                unturned = {"file": file, "page": page, "error": _UNTURNED}
                yield self._with_source(first or unturned)
            self._again.clear()
        finally:
            # A thread may wait for a page, and this process would wait for the thread.
            if self._process is not None:
                self._process.kill()

    def _groups(
        self, pages: Iterator[Page], asked: Asked
    ) -> Iterator[tuple[Page, ...]]:
        """What is asked at once."""
        options = self._options
        room = asked.room(options.context)
        group: list[Page] = []
        left = room
        for page in pages:
            place = page.file, page.number
            if options.rotate and page.angle and place not in self._again:
                self._again[place] = (page.angle,), None
                continue
            if not options.text_layer:
                page = page._replace(text=None)
            alone = not options.per_document or page.blank or page.error is not None
            tokens = 0
            if not alone:
                tiles = options.drawing.tiler.describe(*page.size, "fast")
                tokens = tiles["prompt_tokens"]
            if group and (alone or tokens > left or page.file != group[0].file):
                yield tuple(group)
                group, left = [], room
            if alone:
                yield (page,)
            else:
                group.append(page)
                left -= tokens
        if group:
            yield tuple(group)

    def _is_final(self, record: Record, turn: int) -> bool:
        """Whether a page is not asked again at another turn. Says how it was turned."""
        place = record["file"], record["page"]
        if turn:
            record["turned"] = turn
        empty = "error" not in record and is_empty(record["answer"])
        turns, before = self._again.get(place, ((90, 180, 270), None))
        if not turn and empty and not record.get("blank"):
            self._again[place] = turns, record
            return False
        if before is not None and (empty or "error" in record):
            return False  # the first record stays
        self._again.pop(place, None)
        return True

    def source(self, name: str) -> dict[str, Any] | None:
        """The state of a document, see `Source`, once its first page is drawn.

        With ``pages``, their number, once the last one is.
        """
        return self._sources.get(name)

    def _with_source(self, record: Record) -> Record:
        source = self.source(record["file"])
        return {**record, "source": source} if source else record

    def copied(self) -> Iterator[Record]:
        """Records of documents that equal others, once those have theirs."""
        lacking = {
            name
            for name, copies in self._copies.items()
            if not all(self._records.equals(copy.name, name) for copy in copies)
        }
        for record in self._records.about(lacking):
            for copy in self._copies[record["file"]]:
                before, now = self._records.source(copy.name), record.get("source")
                if before and now and before["sha256"] != now["sha256"]:
                    self._records.outdate(copy.name)
                if self._records.done(copy.name, record["page"]):
                    continue
                changes = {"file": copy.name, "copy_of": record["file"]}
                if source := record.get("source"):
                    changes["source"] = {**source, "modified": copy.modified}
                yield record | changes


def _differs(file: Path, source: Mapping[str, Any]) -> bool:
    """Whether a file is no longer what was noted before its pages were drawn."""
    found = Found("", str(file)).examined_again()
    return found.bytes is None or found.has_changed(source)
