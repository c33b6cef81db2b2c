# SPDX-License-Identifier: Apache-2.0
"""Documents are read in a process of their own, which a damaged file may end.

PDFium, libtiff and other libraries that read documents are written in C and C++.
"""

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .pages import Document, Drawing, Page, count_pages, read_pages

# For a page; the slowest page of ordinary documents takes a few seconds.
MOST_SECONDS = 120.0
MOST_PAGES = 10_000
_MOST_ENDED = 3  # pages of a document that end the process
# For a document besides its pages, and for each page on average
_SPARE_SECONDS = _MOST_ENDED * MOST_SECONDS
_SECONDS_OF_PAGE = 5.0
_MEMORY = 4 << 30
_NO_MEMORY = 3  # exit status
_END = "end"


class _Ended(Exception):
    """The process ended, or was stopped; says why."""


def _last(name: str, cause: str) -> Page:
    """Record of the pages that are not read."""
    return Page(name, None, error=f"{cause} The others are left out.")


class PageProcess:
    """A process that reads documents, and starts again if a document ends it.

    Args:
        drawing: How pages are drawn.
        most_pages: Limit of a document. A few bytes of a PDF can stand for a million.
    """

    def __init__(self, drawing: Drawing, most_pages: int = MOST_PAGES) -> None:
        self.drawing = drawing
        self._most_pages = most_pages
        self._process: Any = None
        self._waited = 0.0  # seconds, for the answers of all documents
        self._connection: Connection

    def __enter__(self) -> "PageProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def kill(self) -> None:
        """End the process, also while another thread waits for an answer of it."""
        if self._process is not None:
            self._process.kill()

    def count(self, file: Path) -> int:
        """`count_pages`, up to the limit; 1 for a document that ends the process."""
        try:
            self._send(file)
            return min(self._receive(), self._most_pages)
        except _Ended:
            return 1

    def read(
        self, documents: Iterable[Document], done: Callable[[str, int | None], bool]
    ) -> Iterator[Page]:
        """`read_pages`. What ends the process, or takes too long, is an error.

        A document with too many pages, or of which several do that, or many are slow,
        has one error for the remaining ones.

        Args:
            documents: What is read.
            done: Whether a page, by name and number, is left out.
        """
        for document in documents:
            yield from self._read(document, done, True)

    def measure(
        self, documents: Iterable[Document], done: Callable[[str, int | None], bool]
    ) -> Iterator[Page]:
        """As `read`, but no page is drawn: there is only `Page.size`."""
        for document in documents:
            yield from self._read(document, done, False)

    def _read(
        self,
        document: Document,
        done: Callable[[str, int | None], bool],
        drawn: bool,
    ) -> Iterator[Page]:
        name, given_up, ended, count = document.name, 0, 0, 0
        begun = self._waited
        while True:
            number: int | None = None  # the page that is drawn now
            try:
                self._send((document, drawn))
                while (answer := self._receive()) != _END:
                    if isinstance(answer, Page):
                        number = None
                        count += 1
                        yield answer
                        continue
                    number, seconds, cause = answer, self._waited - begun, ""
                    if number is not None and number > self._most_pages:
                        cause = f"It has more than {self._most_pages} pages."
                    elif seconds > _SPARE_SECONDS + count * _SECONDS_OF_PAGE:
                        cause = f"Drawing {count} of its pages took {seconds:.0f} s."
                    if cause:
                        self._stop()
                        yield _last(name, cause)
                        return
                    left_out = number is not None and number <= given_up
                    self._connection.send(left_out or done(name, number))
                return
            except _Ended as error:
                yield Page(name, number, error=str(error))
                if number is None:
                    return
                given_up, ended = number, ended + 1
                if ended == _MOST_ENDED:
                    cause = f"{ended} pages could not be drawn in time and memory."
                    yield _last(name, cause)
                    return

    def _send(self, command: object) -> None:
        if self._process is not None and not self._process.is_alive():
            self._stop()
        if self._process is None:
            # Spawned: a fork would share the locks of this process's threads.
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(other, self.drawing), daemon=True
            )
            self._process.start()
            other.close()
        self._connection.send(command)

    def _receive(self) -> Any:
        """An answer.

        Raises:
            _Ended: There is none.
        """
        start = time.monotonic()
        try:
            in_time = self._connection.poll(MOST_SECONDS)
            answer = self._connection.recv() if in_time else None
        except (EOFError, ConnectionError):
            process = self._process
            process.join()
            self._stop()
            raise _Ended(_cause(process.exitcode)) from None
        finally:
            self._waited += time.monotonic() - start
        if not in_time:
            self._stop()
            raise _Ended(f"Drawing took more than {MOST_SECONDS:g} s.")
        return answer

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _cause(status: int) -> str:
    if status == _NO_MEMORY:
        return f"It needs more than {_MEMORY >> 30} GB of memory."
    if status == -signal.SIGKILL:
        return "The process that reads it was killed, perhaps for lack of memory."
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"It is damaged, and ended the process that reads it ({how})."


def _serve(connection: Connection, drawing: Drawing) -> None:
    """Answer commands: a path, to count its pages; or a document, and whether its pages
    are drawn.

    Before it draws a page, it sends the page's number and receives whether the page is
    left out.
    """
    # A Ctrl-C goes to both processes; the other one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))

    def left_out(name: str, number: int | None) -> bool:
        connection.send(number)
        return connection.recv()

    try:
        while True:
            command = connection.recv()
            if isinstance(command, Path):
                connection.send(count_pages(command, drawing.passwords))
                continue
            document, drawn = command
            for page in read_pages([document], drawing, left_out, drawn):
                connection.send(page)
            connection.send(_END)
    except MemoryError:
        sys.exit(_NO_MEMORY)
    except (EOFError, ConnectionError):  # the other process has ended
        return


def _end_with_parent() -> None:
    """End also while a page is drawn."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
