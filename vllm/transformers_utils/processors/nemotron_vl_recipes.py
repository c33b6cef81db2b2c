# SPDX-License-Identifier: Apache-2.0
"""The resize recipes: how an image is resampled to its grid of tiles.

- ``fast``: Pillow's bicubic filter. torch resamples on uint8 instead where that
  is faster; every value is within 2/255 of ``exact``.
- ``exact``: Pillow's bicubic filter, bit-identical to vLLM's in-tree model.
- ``hf``: what the checkpoint's own image_processing.py does. The image is doubled
  (Pillow, bilinear) before its grid is chosen, then resized with an antialiased
  bilinear filter.

`RESIZE_RECIPES` in ``nemotron_vl_tiling.py`` lists their names.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image

from .nemotron_vl_resample import (
    doubled,
    pillow_resizes_columns_first,
    resample,
    rgbx_pixels,
)


def resizer(image: Image.Image, recipe: str) -> Callable[[torch.Tensor], None]:
    """A function that resizes an RGB image and cuts it into tiles.

    The function takes a contiguous uint8 buffer of shape ``(rows, columns, 3,
    size, size)`` and fills it. The resized image has ``rows * size`` x ``columns
    * size`` pixels. An image that has this size already is not resampled.

    Args:
        image: RGB.
        recipe: One of `RESIZE_RECIPES`.
    """

    @cache  # used for the grid and for the thumbnail
    def source() -> torch.Tensor:
        pixels = doubled(image) if recipe == "hf" else rgbx_pixels(image)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def resize(tiles: torch.Tensor) -> None:
        rows, columns, _, side, _ = tiles.shape
        height, width = size = rows * side, columns * side
        # torch resizes along rows first. It is faster than `resample` where the
        # image shrinks, and close to it where Pillow has the same order.
        use_torch = (
            recipe == "fast"
            and width < image.width
            and not pillow_resizes_columns_first(image, width, height)
        )
        if recipe != "hf" and not use_torch and image.size != (width, height):
            resample(image, tiles.numpy())
            return
        pixels = source()
        if pixels.shape[2:] != size:
            mode = "bilinear" if recipe == "hf" else "bicubic"
            pixels = F.interpolate(pixels, size, mode=mode, antialias=True)
        cut = pixels[0, :3].unflatten(2, (columns, side)).unflatten(1, (rows, side))
        tiles.copy_(cut.permute(1, 3, 0, 2, 4))

    return resize
