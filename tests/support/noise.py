"""Images and tiles of noise: no two are alike."""

import numpy as np
import torch
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


def tiles(count: int, size: int = 64) -> torch.Tensor:
    """Pixels as a processor sends them: ``(count, 3, size, size)``, uint8."""
    generator = torch.Generator().manual_seed(count)
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
