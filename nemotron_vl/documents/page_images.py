# SPDX-License-Identifier: Apache-2.0
"""The pages that answers are about, drawn again and reduced for a browser."""

import io
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import NamedTuple

from PIL import Image, ImageOps

from ..checkpoints.tiler import Tiler
from ..images.files import FORMATS
from .pages import Drawing, Page
from .pages_again import pages_again
from .process import PageProcess
from .results import Results

MOST_HEIGHT = 1600  # pixels
_QUALITY = 80  # of WebP
_MEMORY = 4 << 30  # bytes, of the process that reduces
_SECONDS = 60.0  # for a page


class PageImage(NamedTuple):
    """A page as a WebP image, or the reason why there is none.

    Args:
        number: Of the page.
        image: Bytes of the file.
        error: Why there is none.
        text: What the PDF itself says that the page's text is.
    """

    number: int
    image: bytes = b""
    error: str | None = None
    text: str | None = None


def draw_images(
    results: Results,
    tiler: Tiler,
    root: str | None = None,
    passwords: tuple[str, ...] = (),
) -> Iterator[tuple[str, PageImage]]:
    """Draw the pages of all records. Only two are in memory.

    A document that has changed since it was read is not drawn.

    Args:
        results: Records.
        tiler: How large PDFs are drawn.
        root: Folder of the documents whose names are relative, in the place of the one
            where they were read.
        passwords: Tried on encrypted PDFs.

    Yields:
        The document's name and a page.
    """
    drawing = Drawing(tiler, text_layer=True, passwords=passwords)
    wanted = (
        (name, [page for r in records for page in r.pages], records[0].source)
        for name, records in results.documents()
    )
    turns = {(r.file, page): r.turned for r in results.records for page in r.pages}
    reducing: Callable[[], tuple[str, PageImage]] | None = None
    with PageProcess(drawing) as process, _Reducer() as reduce:
        # One is reduced while the next is drawn.
        for page in pages_again(process, wanted, root or results.root):
            if reducing is not None:
                yield reducing()
                reducing = None
            assert page.number is not None
            if page.error is not None:
                yield page.file, PageImage(page.number, error=page.error)
            else:
                reduced = reduce(page.image, turns[page.file, page.number])
                reducing = partial(_finished, page, reduced)
        if reducing is not None:
            yield reducing()


def _finished(page: Page, reduced: Callable[[], bytes]) -> tuple[str, PageImage]:
    assert page.number is not None
    try:
        return page.file, PageImage(page.number, reduced(), text=page.text)
    except (ValueError, OSError) as error:
        return page.file, PageImage(page.number, error=str(error), text=page.text)


class _Reducer:
    """Reduces images in a process of its own, which a damaged image may end."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Reducer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, image: bytes, turned: int) -> Callable[[], bytes]:
        """Begin to reduce an image; only one at a time.

        Returns:
            A function that waits for the WebP image. It raises ``ValueError`` if the
            image is damaged, or takes too much time or memory.
        """
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, _limit)
        future = self._pool.submit(_reduce, image, turned)

        def wait() -> bytes:
            try:
                return future.result(_SECONDS)
            except (BrokenProcessPool, MemoryError, TooSlow) as error:
                self._stop()
                message = "Reducing the image took too much time or memory."
                raise ValueError(message) from error

        return wait

    def _stop(self) -> None:
        if self._pool is not None:
            for process in [*(self._pool._processes or {}).values()]:
                process.kill()
            self._pool.shutdown()
            self._pool = None


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _reduce(content: bytes, turned: int) -> bytes:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            opened.draft("RGB", (MOST_HEIGHT, MOST_HEIGHT))
            image = ImageOps.exif_transpose(opened)
            if image.mode == "I;16":
                image = image.point(lambda level: level / 257).convert("L")
            if image.has_transparency_data:  # the model sees it on white
                image = image.convert("RGBA")
                paper = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(paper, image)
            image = image.convert("RGB").rotate(-turned, expand=True)
            image.thumbnail((2 * MOST_HEIGHT, MOST_HEIGHT), Image.Resampling.LANCZOS)
    except Exception as error:  # Pillow raises all kinds for damaged files
        raise ValueError(f"The image cannot be shown: {error}") from error
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY, method=2)
    return file.getvalue()
