# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl tiles``: how images are cut and how many tokens they take.

Reads only the sizes of the images and imports neither PyTorch nor vLLM. Of a video it
takes the frames that the server takes.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from vllm_nemotron_vl.config.nemotron_vl_video import DEFAULT_FRAMES, MOST_FRAMES
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    MAX_TILES,
    RESIZE_RECIPES,
)

from ..checkpoints.tiler import Tiler
from ..documents.clip import SUFFIXES, is_clip, read_clip
from ..images.files import FORMATS, open_image
from ..images.tiles import draw_tiles
from ..printable import printable, show
from .arguments import number

_SHOWN_FRAMES = 10
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "tiles",
        help="show how images are cut and how many prompt tokens they take",
        description="Prints grid, resized size, tiles and prompt tokens (with <img> "
        "and </img>) of images for each resize recipe. Of a video it prints which "
        "frames are taken, and their tokens. Exits with 1 if a file cannot be read.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="FILE_OR_FOLDER")
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
        help="file for a drawing of the image with its tiles, or of the frames",
    )
    parser.add_argument("--json", action="store_true", help="print a list, for scripts")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    tiler = Tiler.from_model(args.model, args.max_tiles)
    recipes = args.recipe or RESIZE_RECIPES
    files = list(_find_images(args.images))
    if not files:
        raise ValueError("The folder holds no images or videos.")
    if args.out and len(files) > 1:
        raise ValueError(f"-o draws one file, not {len(files)}.")
    found = []
    # A progress bar for several files, only on a terminal.
    for file in tqdm(files, unit="image", disable=None if files[1:] else True):
        row: dict[str, Any] = {"image": str(file)}
        try:
            if is_clip(file):
                clip = read_clip(file, args.frames, tiler.image_size)
                row |= clip.describe(tiler)
                if args.out:
                    clip.draw(tiler.image_size).save(args.out)
            else:
                row |= _describe_image(file, tiler, recipes, args.out)
        except _UNREADABLE as error:
            row["error"] = str(error)
        found.append(row)
    if args.json:
        show(json.dumps(found, indent=1))
    else:
        _print_images([row for row in found if "recipes" in row])
        _print_clips([row for row in found if "taken" in row])
    errors = [row for row in found if "error" in row]
    for row in errors:
        line = f"nemotron-vl: {row['image']}: {row['error']}"
        show(printable(line), sys.stderr)
    return 1 if errors else 0


def _describe_image(
    file: Path, tiler: Tiler, recipes: Iterable[str], out: Path | None
) -> dict[str, Any]:
    width, height = _displayed_size(file)
    if out:
        with open_image(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        grid = tiler.grid_for(width, height, next(iter(recipes)))
        draw_tiles(image, grid, tiler.image_size).save(out)
    described = {recipe: tiler.describe(width, height, recipe) for recipe in recipes}
    return {"width": width, "height": height, "recipes": described}


def _find_images(paths: Iterable[Path]) -> Iterable[Path]:
    """The files, and in the folders those that have a suffix of images or videos."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        known = {*SUFFIXES}
        known |= {
            s for s, kind in Image.registered_extensions().items() if kind in FORMATS
        }
        yield from sorted(f for f in path.rglob("*") if f.suffix.lower() in known)


def _displayed_size(file: Path) -> tuple[int, int]:
    """Width and height after the EXIF rotation."""
    with open_image(file) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


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
        for rest, recipes in cells.items():
            rows.append((image["image"], size, ", ".join(recipes), *rest))
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
