# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl tiles``: how pictures are cut and what they cost.

Reads the size of the pictures only and imports neither PyTorch nor vLLM.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from ....transformers_utils.processors.nemotron_vl_tiling import (
    MAX_TILES,
    RESIZE_RECIPES,
    TileGrid,
    choose_grid,
    image_settings,
    tiles_problem,
    tokens_of_tile,
)

# Of nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1, so that it need not be at hand.
_PUBLISHED: dict[str, Any] = {
    "force_image_size": 512,
    "downsample_ratio": 0.5,
    "vision_config": {"patch_size": 16},
}
MARKERS = 2  # <img> and </img>
_LEAST_SIDE = 256  # of a drawn tile, in pixels
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Tiler(NamedTuple):
    """What a checkpoint and the command line say about tiling."""

    image_size: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    tokens_per_tile: int

    @classmethod
    def from_model(cls, model: str | None, max_tiles: int | None = None) -> "Tiler":
        """Read the data files of a checkpoint (folder or hub name).

        Without one, the published checkpoint's settings hold.

        Raises:
            OSError: A file is missing.
            ValueError: A file or a setting cannot be used.
        """
        config, preprocessor = _PUBLISHED, {}
        if model is not None:
            config = read_json(model, "config.json")
            preprocessor = read_json(model, "preprocessor_config.json")
        settings = image_settings(preprocessor, config)
        dynamic = settings.get("dynamic_image_size")
        fewest = settings.get("min_dynamic_patch", 1)
        most = max_tiles or settings.get("max_dynamic_patch", 12)
        problem = tiles_problem("min_dynamic_patch", fewest, least=1) or tiles_problem(
            "--max-tiles" if max_tiles else "max_num_tiles", most, least=fewest
        )
        if problem:
            raise ValueError(problem)
        try:
            size = config["force_image_size"]
            tokens = tokens_of_tile(
                size, config["vision_config"]["patch_size"], config["downsample_ratio"]
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"config.json of {model}: {error!r}") from error
        return cls(
            image_size=size,
            min_tiles=1 if dynamic is False else fewest,
            max_tiles=1 if dynamic is False else most,
            use_thumbnail=settings.get("use_thumbnail", True),
            tokens_per_tile=tokens,
        )

    def grid_for(self, width: int, height: int, recipe: str) -> TileGrid:
        return choose_grid(
            width,
            height,
            image_size=self.image_size,
            min_tiles=self.min_tiles,
            max_tiles=self.max_tiles,
            use_thumbnail=self.use_thumbnail,
            resize=recipe,
        )

    def describe(self, width: int, height: int, recipe: str) -> dict[str, Any]:
        """What becomes of a picture of ``width`` x ``height`` pixels."""
        grid = self.grid_for(width, height, recipe)
        return {
            "columns": grid.columns,
            "rows": grid.rows,
            "resized": [grid.columns * self.image_size, grid.rows * self.image_size],
            "thumbnail": grid.thumbnail,
            "tiles": grid.num_tiles,
            "prompt_tokens": grid.num_tiles * self.tokens_per_tile + MARKERS,
        }


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "tiles",
        help="show how pictures are cut and how many prompt tokens they take",
        description="Prints grid, resized size, tiles and prompt tokens (<img> and "
        "</img> included) of pictures under each resize recipe. Exits with 1 if a "
        "picture cannot be read.",
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE_OR_FOLDER")
    parser.add_argument(
        "--model",
        help="folder or hub name (default: the published checkpoint's settings)",
    )
    parser.add_argument(
        "--max-tiles",
        type=_tiles,
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
        "-o", "--out", type=Path, help="draw the one picture with its tiles here"
    )
    parser.add_argument("--json", action="store_true", help="a list, for scripts")
    parser.set_defaults(run=_run)


def _tiles(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MAX_TILES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from 1 to {MAX_TILES}"
        )
    return int(text)


def _run(args: argparse.Namespace) -> int:
    tiler = Tiler.from_model(args.model, args.max_tiles)
    recipes = args.recipe or RESIZE_RECIPES
    files = list(_find_pictures(args.pictures))
    if not files:
        raise ValueError("The folder holds no pictures.")
    if args.out and len(files) > 1:
        raise ValueError(f"-o draws one picture, not {len(files)}.")
    found = []
    # On a terminal only, and only where it would be seen.
    for file in tqdm(files, unit="picture", disable=None if files[1:] else True):
        row: dict[str, Any] = {"picture": str(file)}
        try:
            width, height = _size(file)
            row |= {"width": width, "height": height} | {
                "recipes": {r: tiler.describe(width, height, r) for r in recipes}
            }
            if args.out:
                with Image.open(file) as opened:
                    picture = ImageOps.exif_transpose(opened).convert("RGB")
                grid = tiler.grid_for(width, height, recipes[0])
                draw_tiles(picture, grid, tiler.image_size).save(args.out)
        except _UNREADABLE as error:
            row["error"] = str(error)
        found.append(row)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print_table([row for row in found if "error" not in row])
    errors = [row for row in found if "error" in row]
    for row in errors:
        print(f"nemotron-vl: {row['picture']}: {row['error']}", file=sys.stderr)
    return 1 if errors else 0


def read_json(model: str, name: str) -> dict[str, Any]:
    """Content of a data file of a checkpoint, from its folder or the hub.

    Raises:
        OSError: The file is missing; names the model.
        ValueError: Names the file that holds no JSON object.
    """
    file = Path(model, name)
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(model, name))
        except OSError as error:
            raise OSError(
                f"{model} is no folder, and {name} could not be had from the hub: "
                f"{error}"
            ) from error
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object.")
    return content


def _find_pictures(paths: Iterable[Path]) -> Iterable[Path]:
    """Files as they are, and in folders those that Pillow has a format for."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        known = Image.registered_extensions()
        yield from sorted(f for f in path.rglob("*") if f.suffix.lower() in known)


def _size(file: Path) -> tuple[int, int]:
    """Width and height as displayed."""
    with Image.open(file) as picture:
        width, height = picture.size
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


def _print_table(found: list[dict[str, Any]]) -> None:
    rows: list[tuple[str, ...]] = [
        ("picture", "pixels", "recipe", "grid", "resized", "tiles", "tokens")
    ]
    for picture in found:
        cells: dict[tuple[str, ...], list[str]] = {}
        for recipe, cut in picture["recipes"].items():
            tiles = str(cut["columns"] * cut["rows"])
            key = (
                f"{cut['columns']}x{cut['rows']}",
                "{}x{}".format(*cut["resized"]),
                tiles + " + thumbnail" * cut["thumbnail"],
                str(cut["prompt_tokens"]),
            )
            cells.setdefault(key, []).append(recipe)
        size = f"{picture['width']}x{picture['height']}"
        for rest, recipes in cells.items():
            rows.append((picture["picture"], size, ", ".join(recipes), *rest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(padded).rstrip())


def draw_tiles(picture: Image.Image, grid: TileGrid, side: int) -> Image.Image:
    """The picture as the model gets it: numbered tiles, then the thumbnail.

    Args:
        picture: RGB.
        grid: How it is cut.
        side: Of a tile in pixels; small tiles are drawn enlarged.
    """
    zoom = -(-_LEAST_SIDE // side)
    drawn, gap = side * zoom, side * zoom // 8
    parts = [(picture.resize((grid.columns * side, grid.rows * side)), 0)]
    width = grid.columns * drawn
    if grid.thumbnail:
        parts.append((picture.resize((side, side)), width + gap))
        width += gap + drawn
    sheet = Image.new("RGB", (width, grid.rows * drawn), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(drawn // 10)
    number = 0
    for part, left in parts:
        zoomed = (part.width * zoom, part.height * zoom)
        sheet.paste(part.resize(zoomed, Image.Resampling.NEAREST), (left, 0))
        for top in range(0, zoomed[1], drawn):
            for x in range(left, left + zoomed[0], drawn):
                number += 1
                pen.rectangle((x, top, x + drawn - 1, top + drawn - 1), outline="red")
                label = (x + drawn // 20, top + drawn // 20)
                box = pen.textbbox(label, str(number), font)
                pen.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), "red")
                pen.text(label, str(number), "white", font)
    return sheet
