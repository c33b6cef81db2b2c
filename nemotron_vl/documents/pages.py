# SPDX-License-Identifier: Apache-2.0
"""Pages of documents as image files, one at a time: PDFs, TIFFs and images.

Imports neither PyTorch, nor transformers, nor vLLM. PDFium is not thread-safe, so
only one thread at a time may take pages.
"""

import io
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from ..checkpoints.tiler import Tiler
from ..images.files import open_image
from ..regular_files import open_regular

# Suffixes of the files that are taken from folders.
DOCUMENTS = {
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pdf", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
}

# Formats of Pillow that are sent as they are; servers open them. MPO is a kind of JPEG.
_AS_THEY_ARE = {"GIF", "JPEG", "MPO", "PNG", "WEBP"}
_MOST_SENT = 1 << 26  # bytes of a file; larger ones are drawn anew
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_PDF_HEADER_WITHIN = 1024  # bytes; PDFium's limit
_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD of PDFium


class Page(NamedTuple):
    """A page as an image file, or the reason why there is none.

    Args:
        file: Name of the document.
        number: From 1; ``None`` if the document cannot be opened.
        image: The bytes of a file that vLLM opens.
        media_type: Such as ``image/png``.
        error: Why there is no image.
    """

    file: str
    number: int | None
    image: bytes = b""
    media_type: str = ""
    error: str | None = None


def find_documents(paths: Iterable[Path]) -> list[Path]:
    """The given files, and all documents in the given folders, each once.

    In folders, files are chosen by their suffix; hidden files and folders are left out.
    Links to folders are not followed. What cannot be read is among the documents, so
    that `read_pages` says why.

    Returns:
        Absolute paths: the same document has one name, wherever the command runs.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
        if path.is_dir():
            files = _inside(Path(os.path.realpath(path)))
        else:
            files = [Path(os.path.realpath(path.parent), path.name)]
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _inside(folder: Path) -> list[Path]:
    """Documents in a folder and below it, and folders that cannot be listed."""
    unreadable: list[Path] = []
    files = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in names:
            file = Path(place, name)
            if file.suffix.lower() in DOCUMENTS and name[0] != "." and _may_be(file):
                files.append(file)
    return sorted(files + unreadable)


def _may_be(file: Path) -> bool:
    """Whether it is a file, or cannot be examined; not a pipe or a socket."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return True


def count_pages(file: Path) -> int:
    """Number of pages of a document; 1 if it cannot be opened."""
    try:
        if _is_pdf(file):
            with _open_pdf(file) as document:
                return len(document)
        with open_image(file) as image:
            return getattr(image, "n_frames", 1) if _has_pages(image) else 1
    except Exception:  # `read_pages` says what is wrong
        return 1


def read_pages(
    files: Iterable[Path], tiler: Tiler, done: Callable[[str, int | None], bool]
) -> Iterator[Page]:
    """The pages of all documents, in order. Only one is in memory.

    A PDF's page is drawn at the size at which it fills its tiles, with its form
    fields and annotations. A page of a TIFF becomes a PNG, see `_as_png`. Other
    images are the bytes of their files.

    Args:
        files: Documents.
        tiler: How the server cuts images.
        done: Whether a page, by file and number, is left out.

    Yields:
        A page for each page, or one page with an error for a document that cannot
        be opened.
    """
    for file in files:
        name = str(file)
        if done(name, None):
            continue
        try:
            read = _pdf_pages if _is_pdf(file) else _image_pages
            for number, draw in read(file, tiler):
                if not done(name, number):
                    yield _page(name, number, draw)
        except MemoryError:
            raise  # the caller knows how much memory there is
        except Exception as error:  # Pillow raises all kinds for damaged files
            yield Page(name, None, error=_message(error))


def _page(name: str, number: int, draw: Callable[[], tuple[bytes, str]]) -> Page:
    try:
        return Page(name, number, *draw())
    except MemoryError:
        raise
    except Exception as error:
        return Page(name, number, error=_message(error))


def _message(error: Exception) -> str:
    if type(error) in (OSError, ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"


# A document is an iterator over its pages: their number, and a function that draws
# the page and returns the bytes and the media type of a file.
_Drawn = Iterator[tuple[int, Callable[[], tuple[bytes, str]]]]


def _is_pdf(file: Path) -> bool:
    with open_regular(file) as opened:
        return b"%PDF-" in opened.read(_PDF_HEADER_WITHIN)


def _open_pdf(file: Path):
    """A document of pypdfium2, which reads the file as it needs it.

    Raises:
        ValueError: It is encrypted or damaged.
    """
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD_ERROR:
            raise ValueError("The PDF is encrypted and needs a password.") from error
        raise ValueError(f"The PDF cannot be opened: {error}") from error
    document.init_forms()  # before its pages: draws what is filled in
    return document


def _pdf_pages(file: Path, tiler: Tiler) -> _Drawn:
    def draw() -> tuple[bytes, str]:
        page = document[index]
        try:
            width, height = page.get_size()
            if min(width, height) <= 0:
                raise ValueError(f"The page is {width:g}x{height:g} points.")
            bitmap = page.render(scale=tiler.filling_scale(width, height))
            try:
                return _as_png(bitmap.to_pil())
            finally:
                bitmap.close()
        finally:
            page.close()

    with _open_pdf(file) as document:
        if not len(document):
            raise ValueError("The PDF has no pages.")
        for index in range(len(document)):
            yield index + 1, draw


def _has_pages(image: Image.Image) -> bool:
    """Whether the frames of an image are pages, not those of an animation."""
    return image.format == "TIFF"


def _image_pages(file: Path, tiler: Tiler) -> _Drawn:
    def draw() -> tuple[bytes, str]:
        return _as_png(image, tiler)

    with open_image(file) as image:
        kind = image.format or ""
        if kind in _AS_THEY_ARE and file.stat().st_size <= _MOST_SENT:
            media_type = Image.MIME["JPEG" if kind == "MPO" else kind]
            yield 1, lambda: (file.read_bytes(), media_type)
            return
        index = 0
        while index == 0 or _has_pages(image):
            try:
                image.seek(index)
            except EOFError:
                return
            yield index + 1, draw
            index += 1


def _as_png(image: Image.Image, tiler: Tiler | None = None) -> tuple[bytes, str]:
    """A PNG, reduced to the size that fills the tiles if it is more than twice that."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":  # levels from 0 to 1
        image = image.point(lambda level: level * 255 + 0.5).convert("L")
    elif image.mode[0] == "I" and image.mode != "I;16":
        image = image.convert("I").convert("I;16")
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    scale = 1.0 if tiler is None else tiler.filling_scale(*image.size)
    if scale < 0.5 and image.mode != "I;16":
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGBA")
        width, height = (math.ceil(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # the fastest
    return file.getvalue(), "image/png"
