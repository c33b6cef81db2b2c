#!/usr/bin/env python3
"""Draw the figures of docs/preprocessing.md: what the tower sees under each recipe.

    python tools/recipe_images.py docs

Writes recipe_fast.png, recipe_exact.png and recipe_hf.png. Each shows the tiles of a
page of 512 x 512 pixels, a detail of a page of 640 x 480, and how far its pixels are
from those of "exact".
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    RESIZE_RECIPES,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TILE = 512
DETAIL = (slice(85, 165), slice(85, 285))  # rows and columns of the first tile
LINES = ("INVOICE 2031-4477", "12  Copper pipe 15 mm   38.40", "3  Elbow   4.05")


def page(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(15)
    for number, line in enumerate(LINES * 3):
        y = 30 + 48 * number
        draw.text((30, y), line, "black", font)
        draw.line((30, y + 26, width - 30, y + 26), "silver")
    return image


def tiles(image: Image.Image, recipe: str) -> tuple[torch.Tensor, int]:
    """Tiles ``(tiles, height, width, 3)``, and the number of columns of the grid."""
    processor = NemotronVLImageProcessor(TILE, resize=recipe)
    grid = processor.grid_for(*image.size)
    return processor.tile(image, grid).movedim(1, -1), grid.columns


def draw_recipe(recipe: str, file: Path) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 4), layout="constrained", width_ratios=(1, 1.5, 1.5)
    )
    found, columns = tiles(page(TILE, TILE), recipe)
    rows = -(-len(found) // columns)
    gap = 16
    side = TILE + gap
    sheet = torch.full((rows * side, columns * side, 3), 160, dtype=torch.uint8)
    for number, tile in enumerate(found):
        row, column = divmod(number, columns)
        top, start = row * side + gap // 2, column * side + gap // 2
        sheet[top : top + TILE, start : start + TILE] = tile
    left.imshow(sheet)
    left.set_title(f"512x512: {len(found)} tile" + "s" * (len(found) > 1))

    large = page(640, 480)
    mine, exact = (tiles(large, name)[0] for name in (recipe, "exact"))
    middle.imshow(mine[0][DETAIL], interpolation="nearest")
    middle.set_title("640x480: a detail of the first tile")
    apart = (mine.int() - exact.int()).abs().amax(-1)
    shown = right.imshow(apart[0][DETAIL], cmap="magma", vmin=0, vmax=32)
    figure.colorbar(shown, ax=right, shrink=0.5)
    differing = (apart > 0).float().mean()
    right.set_title(
        f'from "exact": {differing:.2%} of the pixels, at most {apart.max()}/255'
    )
    for axes in (left, middle, right):
        axes.set_axis_off()
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for recipe in RESIZE_RECIPES:
        draw_recipe(recipe, folder / f"recipe_{recipe}.png")


if __name__ == "__main__":
    main()
