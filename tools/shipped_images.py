#!/usr/bin/env python3
"""Draws the images of nemotron_vl/verify/shipped.

They are files, so their bytes do not depend on the version of Pillow that draws:
- receipt.jpg: a tilted receipt under uneven light, as a JPEG
- chart.png: a chart in a palette of 32 colours
"""

from pathlib import Path

import numpy as np
from PIL import Image

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.verify.documents import draw_documents

FOLDER = Path(__file__).parents[1] / "nemotron_vl/verify/shipped"
LINES = ("12/11 18:42", "3.10", "12.40", "15.50")


def receipt() -> Image.Image:
    paper = draw_text(*LINES, ink="dimgrey", paper="whitesmoke", font_size=64)
    turned = paper.rotate(
        4, Image.Resampling.BICUBIC, expand=True, fillcolor="saddlebrown"
    )
    levels = np.asarray(turned, np.float32)
    light = np.linspace(0.65, 1.0, turned.width, dtype=np.float32)[None, :, None]
    noise = np.random.default_rng(0).normal(0, 5, levels.shape)
    return Image.fromarray((levels * light + noise).clip(0, 255).astype(np.uint8))


def main() -> None:
    receipt().save(FOLDER / "receipt.jpg", quality=80)
    chart = draw_documents(4, seed=1)[3].images[0]
    chart.quantize(32).save(FOLDER / "chart.png", optimize=True)


if __name__ == "__main__":
    main()
