# SPDX-License-Identifier: Apache-2.0
"""Drawings of images with the tiles that they are cut into."""

from PIL import Image, ImageDraw, ImageFont

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import TileGrid

_LEAST_SIDE = 256  # of a drawn tile, in pixels


def draw_tiles(
    image: Image.Image, grid: TileGrid, side: int, most: int | None = None
) -> Image.Image:
    """The image as the model gets it: numbered tiles, then the thumbnail.

    Args:
        image: RGB.
        grid: How it is cut.
        side: Side of a tile in pixels. Small tiles are drawn enlarged.
        most: Number only the first tiles, this many.
    """
    zoom = -(-_LEAST_SIDE // side)
    drawn, gap = side * zoom, side * zoom // 8
    parts = [(image.resize((grid.columns * side, grid.rows * side)), 0)]
    width = grid.columns * drawn
    if grid.thumbnail:
        parts.append((image.resize((side, side)), width + gap))
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
                if most is not None and number > most:
                    return sheet
                pen.rectangle((x, top, x + drawn - 1, top + drawn - 1), outline="red")
                label = (x + drawn // 20, top + drawn // 20)
                box = pen.textbbox(label, str(number), font)
                pen.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), "red")
                pen.text(label, str(number), "white", font)
    return sheet
