# SPDX-License-Identifier: Apache-2.0
"""Pages of documents as image files, one at a time: PDFs, TIFFs and images.

Imports neither PyTorch, nor transformers, nor vLLM. PDFium is not thread-safe, so
only one thread at a time may take pages.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from ..checkpoints.tiler import Tiler
from ..images.blank import is_blank
from ..images.files import displayed_size, open_image
from .pdf import draw, drawn_size, is_pdf, open_pdf, text_layer

# Formats of Pillow that are sent as they are; servers open them. MPO is a kind of JPEG.
_AS_THEY_ARE = {"GIF", "JPEG", "MPO", "PNG", "WEBP"}
_MOST_SENT = 1 << 26  # bytes of a file; larger ones are drawn anew
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_TURNS = {  # Pillow turns the other way
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


class Document(NamedTuple):
    """A file, and what it is called in records.

    Args:
        name: Its name in the records: a path or a URL.
        path: A local file.
    """

    name: str
    path: Path


class Drawing(NamedTuple):
    """How pages are drawn, and what else is told about them.

    Args:
        tiler: How the server cuts images.
        text_layer: Whether `Page.text` and `Page.angle` are read.
        find_blank: Whether `Page.blank` is computed.
        passwords: Tried on encrypted PDFs.
        turn: Degrees clockwise by which each page is turned: 0, 90, 180 or 270.
    """

    tiler: Tiler
    text_layer: bool = False
    find_blank: bool = False
    passwords: tuple[str, ...] = ()
    turn: int = 0


class Page(NamedTuple):
    """A page as an image file, or the reason why there is none.

    Args:
        file: Name of the document.
        number: From 1; ``None`` if the document cannot be opened.
        image: The bytes of a file that vLLM opens.
        media_type: Such as ``image/png``.
        size: Width and height in pixels of the image as it is displayed.
        text: Text layer of a PDF's page, up to 1 MiB; ``None`` if there is none.
        angle: Degrees clockwise by which the image should be turned so that the text
            of its layer is upright.
        blank: Whether the page has no marks, see `is_blank`.
        error: Why there is no image.
        last: Whether the document has no page after it.
    """

    file: str
    number: int | None
    image: bytes = b""
    media_type: str = ""
    size: tuple[int, int] = (0, 0)
    text: str | None = None
    angle: int = 0
    blank: bool = False
    error: str | None = None
    last: bool = False


def count_pages(file: Path, passwords: tuple[str, ...] = ()) -> int:
    """Number of pages of a document; 1 if it cannot be opened."""
    try:
        if is_pdf(file):
            with open_pdf(file, passwords) as document:
                return len(document)
        with open_image(file) as image:
            return getattr(image, "n_frames", 1) if _has_pages(image) else 1
    except Exception:  # `read_pages` says what is wrong
        return 1


def read_pages(
    documents: Iterable[Document],
    drawing: Drawing,
    done: Callable[[str, int | None], bool],
    drawn: bool = True,
) -> Iterator[Page]:
    """The pages of all documents, in order. Only one is in memory.

    A PDF's page is drawn at the size at which it fills its tiles, with its form
    fields and annotations. A page of a TIFF becomes a PNG, see `_drawn`. Other
    images are the bytes of their files, unless they are turned.

    Args:
        documents: What is read.
        drawing: How the pages are drawn.
        done: Whether a page, by name and number, is left out.
        drawn: Without it, pages have only their size.

    Yields:
        A page for each page, or one page with an error for a document that cannot
        be opened.
    """
    for name, path in documents:
        if done(name, None):
            continue
        try:
            read = _pdf_pages if is_pdf(path) else _image_pages
            for number, make, last in read(path, drawing):
                if not done(name, number):
                    page = _page(name, number, partial(make, drawn))
                    yield page._replace(last=last)
        except MemoryError:
            raise  # the caller knows how much memory there is
        except Exception as error:  # Pillow raises all kinds for damaged files
            yield Page(name, None, error=_message(error))


def _page(name: str, number: int, make: Callable[[], dict[str, Any]]) -> Page:
    try:
        return Page(name, number, **make())
    except MemoryError:
        raise
    except Exception as error:
        return Page(name, number, error=_message(error))


def _message(error: Exception) -> str:
    if type(error) in (OSError, ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"


# A document is an iterator over its pages: their number, a function that makes the
# fields of `Page`, and whether it is the last one. The function is told whether the
# page is drawn, or only measured.
_Pages = Iterator[tuple[int, Callable[[bool], dict[str, Any]], bool]]


def _pdf_pages(file: Path, drawing: Drawing) -> _Pages:
    def make(index: int, drawn: bool) -> dict[str, Any]:
        scale, size = drawn_size(document, index, drawing.tiler, drawing.turn)
        if not drawn:
            return {"size": size}
        with contextlib.closing(document[index]) as page:
            image = draw(page, scale, drawing.turn)
            text, angle = text_layer(page) if drawing.text_layer else (None, 0)
        return _encoded(image) | {
            "text": text,
            "angle": (angle - drawing.turn) % 360 if text else 0,
            "blank": drawing.find_blank and is_blank(image),
        }

    with open_pdf(file, drawing.passwords) as document:
        count = len(document)
        for index in range(count):
            yield index + 1, partial(make, index), index + 1 == count


def _has_pages(image: Image.Image) -> bool:
    """Whether the frames of an image are pages, not those of an animation."""
    return image.format == "TIFF"


def _image_pages(file: Path, drawing: Drawing) -> _Pages:
    def make(drawn: bool) -> dict[str, Any]:
        size = displayed_size(image) if as_it_is else _size(image, drawing)
        if not drawn:
            return {"size": size}
        if as_it_is:
            page = {"image": file.read_bytes(), "media_type": media_type, "size": size}
        else:
            page = _encoded(_drawn(image, drawing, size), "JPEG" if photo else "PNG")
        return page | {"blank": drawing.find_blank and is_blank(image)}

    with open_image(file) as image:
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        sent = kind in _AS_THEY_ARE and file.stat().st_size <= _MOST_SENT
        as_it_is = sent and not drawing.turn
        photo = kind == "JPEG" and sent
        media_type = Image.MIME.get(kind, "")
        index = 0
        while index == 0 or _has_pages(image):
            try:
                image.seek(index)
            except EOFError:
                return
            yield index + 1, make, _is_last(image, index)
            index += 1


def _is_last(image: Image.Image, index: int) -> bool:
    if not _has_pages(image):
        return True
    try:
        image.seek(index + 1)
    except Exception as error:  # others are for who wants the next page
        return isinstance(error, EOFError)
    finally:
        image.seek(index)
    return False


def _size(image: Image.Image, drawing: Drawing) -> tuple[int, int]:
    """Of the image that is drawn: turned, and reduced to the size that fills its tiles
    if it is more than twice that."""
    width, height = displayed_size(image)
    if drawing.turn % 180:
        width, height = height, width
    scale = drawing.tiler.filling_scale(width, height)
    if scale >= 0.5 or image.mode[0] == "I":
        return width, height
    return math.ceil(width * scale), math.ceil(height * scale)


def _drawn(image: Image.Image, drawing: Drawing, size: tuple[int, int]) -> Image.Image:
    """An image of `size`, in a mode of PNG files."""
    image = ImageOps.exif_transpose(image)
    if drawing.turn:
        image = image.transpose(_TURNS[drawing.turn])
    if image.mode == "F":  # levels from 0 to 1
        image = image.point(lambda level: level * 255 + 0.5).convert("L")
    elif image.mode[0] == "I" and image.mode != "I;16":
        image = image.convert("I").convert("I;16")
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    if image.size != size:
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGBA")
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    return image


def _encoded(image: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    file = io.BytesIO()
    # The fastest PNG; a JPEG in which a second compression is not seen.
    image.save(file, kind, compress_level=1, quality=95)
    data = file.getvalue()
    return {"image": data, "media_type": Image.MIME[kind], "size": image.size}
