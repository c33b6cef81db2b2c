# SPDX-License-Identifier: Apache-2.0
"""Images whose memory in Pillow is made once something asks for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


class LazyImage(Image.Image):
    """An RGB image of known size.

    Args:
        size: Width and height in pixels.
        make: Returns the image.
    """

    def __init__(self, size: tuple[int, int], make: Callable[[], Image.Image]) -> None:
        super().__init__()
        self._mode, self._size, self._make = "RGB", size, make

    def load(self) -> Any:
        """As of a file that Pillow has opened: its other methods call this first."""
        if self._im is None:
            made = self._make()
            made.load()
            self.im = made.im
        return super().load()


class ArrayImage(LazyImage):
    """An RGB image of an array.

    Args:
        pixels: uint8 of shape ``(height, width, 3)``, or with a fourth channel that is
            padding.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        height, width, _ = pixels.shape
        super().__init__((width, height), lambda: Image.fromarray(pixels[..., :3]))
        self.pixels = pixels
