# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl tiles``: how pages are cut and how many tokens they take.

Reads only the sizes of pages and imports neither PyTorch nor vLLM. Of a video it takes
the frames that the server takes.
"""

import argparse
import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from vllm_nemotron_vl.config.nemotron_vl_video import DEFAULT_FRAMES, MOST_FRAMES
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    MAX_TILES,
    RESIZE_RECIPES,
)

from ..checkpoints.tiler import Tiler
from ..documents import clip as clips
from ..documents import finding
from ..documents.clip import is_clip, read_clip
from ..documents.finding import Found, find_documents, opened_locally
from ..documents.pages import Document, Drawing, Page
from ..documents.process import PageProcess
from ..images.files import as_rgb
from ..images.tiles import draw_tiles
from ..printable import printable, show
from ..regular_files import naming
from .arguments import number

_SHOWN_FRAMES = 10


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "tiles",
        help="show how pages are cut and how many prompt tokens they take",
        description="Prints grid, resized size, tiles and prompt tokens (with <img> "
        "and </img>) of images and of pages, as `read` draws them, for each resize "
        "recipe. Of a video it prints which frames are taken, and their tokens. Exits "
        "with 1 if a file or a page cannot be read.",
    )
    parser.add_argument("images", nargs="+", metavar="FILE_OR_FOLDER")
    parser.add_argument(
        "--model",
        help="folder or hub name (default: the published checkpoint's settings)",
    )
    parser.add_argument(
        "--max-tiles",
        type=number(MAX_TILES),
        metavar="N",
        help=f"most tiles of a grid, 1 to {MAX_TILES}",
    )
    parser.add_argument(
        "--recipe",
        choices=RESIZE_RECIPES,
        action="append",
        help="may be repeated (default: all)",
    )
    parser.add_argument(
        "--frames",
        type=number(MOST_FRAMES),
        default=DEFAULT_FRAMES,
        metavar="N",
        help=f"most frames of a video, 1 to {MOST_FRAMES} (default: {DEFAULT_FRAMES})",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        help="file for a drawing of the page with its tiles, or of the frames",
    )
    parser.add_argument(
        "--page", type=number(), metavar="N", help="only this page of documents"
    )
    parser.add_argument("--json", action="store_true", help="print a list, for scripts")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    tiler = Tiler.from_model(args.model, args.max_tiles)
    recipes = args.recipe or RESIZE_RECIPES
    suffixes = {*finding.SUFFIXES, *clips.SUFFIXES}
    documents = find_documents(args.images, suffixes=suffixes).documents
    if not documents:
        raise ValueError("The folder holds no documents, images or videos.")
    if args.out:
        _check_drawn(args.out, documents)
    found: list[dict[str, Any]] = []
    with PageProcess(Drawing(tiler)) as process:
        # A progress bar for several files, only on a terminal.
        several = None if documents[1:] else True
        for document in tqdm(documents, unit="file", disable=several):
            with contextlib.ExitStack() as stack:
                try:
                    file = stack.enter_context(opened_locally(document))
                except OSError as error:
                    row: dict[str, Any] = {"image": document.name, "page": None}
                    found.append(row | {"error": str(error)})
                    continue
                local = Document(document.name, file)
                found += _rows(process, local, args, recipes)
    if args.json:
        show(json.dumps(found, indent=1))
    else:
        _print_images([row for row in found if "recipes" in row])
        _print_clips([row for row in found if "taken" in row])
    errors = [row for row in found if "error" in row]
    for row in errors:
        place = f"{row['image']}, page {row['page']}" if row["page"] else row["image"]
        show(printable(f"nemotron-vl: {place}: {row['error']}"), sys.stderr)
    return 1 if errors else 0


def _rows(
    process: PageProcess,
    document: Document,
    args: argparse.Namespace,
    recipes: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A row for each page, or one for a video."""
    tiler = process.drawing.tiler
    video = False
    with contextlib.suppress(OSError, ValueError):  # the page process says why
        video = is_clip(document.path)
    if video:
        yield _clip(document, args.frames, tiler, args.out)
        return
    pages = [*_pages(process, document, args.page, args.out is not None)]
    if args.out and len(pages) > 1:
        raise ValueError(f"{document.name} has several pages: choose one with --page.")
    for page in pages:
        yield _row(page, tiler, recipes)
        if args.out and page.error is None:
            _draw(page, tiler, recipes[0], args.out)


def _check_drawn(out: Path, documents: Sequence[Found]) -> None:
    """Refuse what cannot be drawn, before files are read."""
    if len(documents) > 1:
        raise ValueError(f"-o draws one file, not {len(documents)}.")
    (document,) = documents
    if out.exists() and not document.remote and out.samefile(document.place):
        raise ValueError(f"-o {out} is the file that is read. Choose another name.")
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"-o {out} must end with .png or the suffix of another image.")


def _clip(
    document: Document, frames: int, tiler: Tiler, out: Path | None
) -> dict[str, Any]:
    row = {"image": document.name, "page": None}
    try:
        taken = read_clip(document.path, frames, tiler.image_size)
    except (OSError, ValueError) as error:
        return row | {"error": str(error)}
    if out:
        with naming(out):
            taken.draw(tiler.image_size).save(out)
    return row | taken.describe(tiler)


def _pages(
    process: PageProcess, document: Document, wanted: int | None, drawn: bool
) -> Iterator[Page]:
    """The pages of a file, or the wanted one. If they are drawn, two are enough."""

    def left_out(name: str, number: int | None) -> bool:
        if number is None:
            return False
        return drawn and number > 2 if wanted is None else number != wanted

    page = None
    read = process.read if drawn else process.measure
    for found in read([document], left_out):
        if wanted is None or page is None:
            page = found
            yield page
    if page is None:
        error = f"It has no page {wanted}, but {process.count(document.path)}."
        yield Page(document.name, None, error=error)


def _row(page: Page, tiler: Tiler, recipes: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"image": page.file, "page": page.number}
    if page.error is not None:
        return row | {"error": page.error}
    width, height = page.size
    described = {recipe: tiler.describe(width, height, recipe) for recipe in recipes}
    return row | {"width": width, "height": height, "recipes": described}


def _draw(page: Page, tiler: Tiler, recipe: str, out: Path) -> None:
    """Write the drawing of a page with its tiles."""
    with Image.open(io.BytesIO(page.image)) as opened:
        image = as_rgb(ImageOps.exif_transpose(opened))
    grid = tiler.grid_for(*page.size, recipe)
    with naming(out):
        draw_tiles(image, grid, tiler.image_size).save(out)


def _print_clips(found: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = [
        ("video", "pixels", "frames", "taken", "tiles", "tokens")
    ]
    for clip in found:
        taken = [*map(str, clip["taken"])]
        if len(taken) > _SHOWN_FRAMES:
            taken = [*taken[: _SHOWN_FRAMES - 2], "...", taken[-1]]
        rows.append(
            (
                clip["image"],
                f"{clip['width']}x{clip['height']}",
                str(clip["frames"]),
                " ".join(taken),
                str(clip["tiles"]),
                str(clip["prompt_tokens"]),
            )
        )
    _print_table(rows)


def _print_images(found: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = [
        ("image", "pixels", "recipe", "grid", "resized", "tiles", "tokens")
    ]
    pages = Counter(row["image"] for row in found)
    for image in found:
        cells: dict[tuple[str, ...], list[str]] = {}
        for recipe, cut in image["recipes"].items():
            tiles = str(cut["columns"] * cut["rows"])
            key = (
                f"{cut['columns']}x{cut['rows']}",
                "{}x{}".format(*cut["resized"]),
                tiles + " + thumbnail" * cut["thumbnail"],
                str(cut["prompt_tokens"]),
            )
            cells.setdefault(key, []).append(recipe)
        size = f"{image['width']}x{image['height']}"
        name = image["image"]
        if pages[name] > 1 or image["page"] > 1:
            name += f", page {image['page']}"
        for rest, recipes in cells.items():
            rows.append((name, size, ", ".join(recipes), *rest))
    _print_table(rows)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """Print rows below their titles, if there are any."""
    if len(rows) == 1:
        return
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        show("  ".join(padded).rstrip())
