"""Memory of one image, up to the limits, in a process of its own."""

import json

import pytest

from support.forked import run_forked

PIXELS = 16_000_000
LONGEST = 1 << 17
STRIPS = [
    (PIXELS // LONGEST, LONGEST),
    (LONGEST, PIXELS // LONGEST),
    (1, LONGEST),
    (LONGEST, 1),
]
SQUARE = (4000, 4000)

CODE = """
import json
import numpy as np
from PIL import Image
from support.hostile import memory_of
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)

def make(mode, size):
    if mode in ("I", "I;16", "F"):
        kind = {"I": "int32", "I;16": "uint16", "F": "float32"}[mode]
        return Image.fromarray(np.ones(size[::-1], kind))
    if mode.endswith("+tRNS"):
        image = Image.new(mode.removesuffix("+tRNS"), size)
        image.info["transparency"] = 0 if len(mode) < 8 else (0, 0, 0)
        return image
    return Image.new(mode, size)

def process(recipe, image):
    cutter = NemotronVLImageProcessor(512, resize=recipe, do_rescale=False)
    return len(cutter(images=image)["pixel_values_flat"])

for recipe in ("fast", "exact", "hf"):  # compile
    process(recipe, make("RGB", (700, 900)))
    process(recipe, make("RGB", (900, 5000)))
for mode, size, recipe in cases:
    image = make(mode, size)
    with memory_of() as used:
        process(recipe, image)
    print("case", json.dumps([mode, size, recipe, used.peak, used.left]), flush=True)
"""


@pytest.mark.parametrize(
    "cases",
    [
        [("RGB", size, "fast") for size in STRIPS],
        [("RGB", size, "exact") for size in STRIPS],
        [("RGB", size, "hf") for size in [*STRIPS, SQUARE]],
        [
            (mode, SQUARE, "fast")
            for mode in (
                *("1", "L", "LA", "RGBA", "CMYK"),
                *("I", "I;16", "F", "P+tRNS", "RGB+tRNS"),
            )
        ],
    ],
    ids=["fast", "exact", "hf", "modes"],
)
def test_an_image_takes_three_times_its_pixels_and_leaves_nothing(
    cases, monkeypatch, tmp_path
):
    """Pixels of RGB, of which Pillow stores four bytes each."""
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", str(PIXELS))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # freed memory goes back
    said = run_forked(exec, CODE, {"cases": cases}, output=tmp_path / "said.txt")
    lines = [line.partition("case ")[2] for line in said.splitlines()]
    found = [json.loads(line) for line in lines if line]
    assert len(found) == len(cases), said
    for mode, (width, height), recipe, peak, left in found:
        case = (mode, (width, height), recipe)
        assert peak <= 3 * 4 * width * height / 1e6 + 100, case
        assert left <= 40, case
