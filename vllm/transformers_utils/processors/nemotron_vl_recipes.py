# SPDX-License-Identifier: Apache-2.0
"""The resize recipes: how an image is resampled to its grid of tiles.

- ``fast``: Pillow's bicubic filter, with sums in float32; every value is within 2/255
  of ``exact``.
- ``exact``: Pillow's bicubic filter, bit-identical to vLLM's in-tree model.
- ``hf``: what the checkpoint's own image_processing.py does under transformers 4 to
  5.3. The image is doubled (Pillow, bilinear) before its grid is chosen, then resized
  with an antialiased bilinear filter.

`RESIZE_RECIPES` in ``nemotron_vl_tiling.py`` lists their names.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image

from .nemotron_vl_resampling.memory import rgbx_pixels
from .nemotron_vl_resampling.resample import Precision, bands, cut, doubled_bands
from .nemotron_vl_resampling.threads import IMAGE_THREADS

# Bands of the largest size for each thread, so that no thread waits long for another.
_PARTS = 2

# Bytes between the two passes, if they are more than those of the image. The first
# pass makes a narrow image many times wider. If that takes more, columns are resized
# first; values then differ by rounding from those of the recipe.
_BETWEEN = 64 << 20
_COLUMNS = 32


def resize(image: Image.Image, recipe: str, buffers: Sequence[torch.Tensor]) -> None:
    """Resize an RGB image to several sizes and cut each into tiles.

    An image that has a size already is not resampled for it.

    Args:
        image: RGB.
        recipe: One of `RESIZE_RECIPES`.
        buffers: Contiguous, uint8 of shape ``(rows, columns, 3, size, size)``. The
            image is resized to ``rows * size`` x ``columns * size`` pixels.
    """
    if recipe == "hf":
        _resize_doubled(image, buffers)
        return
    precision: Precision = "float32" if recipe == "fast" else "float64"
    threads = IMAGE_THREADS.limit
    parts = _PARTS * threads if threads > 1 else 1
    others = [tiles for tiles in buffers if _width_and_height(tiles) != image.size]
    tasks = bands(image, [tiles.numpy() for tiles in others], precision, parts)
    tasks += [
        partial(cut, rgbx_pixels(image), tiles.numpy())
        for tiles in buffers
        if _width_and_height(tiles) == image.size
    ]
    IMAGE_THREADS.run(tasks)


def _width_and_height(tiles: torch.Tensor) -> tuple[int, int]:
    return _height_and_width(tiles)[::-1]


def _height_and_width(tiles: torch.Tensor) -> tuple[int, int]:
    rows, columns, _, side, _ = tiles.shape
    return rows * side, columns * side


def _resize_doubled(image: Image.Image, buffers: Sequence[torch.Tensor]) -> None:
    """Resize the doubled image, which is never whole in memory.

    torch resizes along rows, rounds to uint8, and resizes along columns. The first
    pass is done here for bands of rows, which gives the same values.
    """
    height, width = 2 * image.height, 2 * image.width
    widths = [_height_and_width(tiles)[1] for tiles in buffers]
    columns_first = 3 * height * sum(widths) > max(_BETWEEN, 3 * height * width)
    if columns_first:
        widths = [width]
    between = [torch.empty((3, height, w), dtype=torch.uint8) for w in widths]
    for top, pixels in doubled_bands(image, max(widths)):
        band = torch.from_numpy(pixels).permute(2, 0, 1)
        for rows in between:
            size = len(pixels), rows.shape[2]
            rows[:, top : top + len(pixels)] = _interpolate(band, size)
    for number, tiles in enumerate(buffers):
        size = _height_and_width(tiles)
        if columns_first:
            # In groups of columns, because torch makes a copy of its input.
            groups = between[0].split(_COLUMNS, dim=2)
            tall = [_interpolate(g, (size[0], g.shape[2])) for g in groups]
            resized = torch.cat(tall, dim=2)
        else:
            resized = between[number]
        resized = _interpolate(resized, size)
        cut(resized.permute(1, 2, 0).numpy(), tiles.numpy())


def _interpolate(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
