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
import zlib
import numpy as np
from PIL import Image
from support.chat import saved
from support.hostile import memory_of
from support.pngs import file_of, rows_of
from vllm.multimodal.media import ImageMediaIO
from vllm_nemotron_vl.multimodal import nemotron_vl_loading as loading
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO
from vllm_nemotron_vl.multimodal.nemotron_vl_repeats import Seen
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import png

def make(mode, size):
    if mode.endswith(" file"):
        kind, mode, *chunks = mode.split()
        if "whole" in chunks:
            rows = rows_of(size, mode, np.ones(size[1]))
            return file_of(size, mode, zlib.compress(rows, 0))
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
        options = {"compress_level": 1} if kind == "PNG" else {}
        return saved(Image.fromarray(noise).convert(mode), kind, **options)
    if mode in ("I", "I;16", "F"):
        kind = {"I": "int32", "I;16": "uint16", "F": "float32"}[mode]
        return Image.fromarray(np.ones(size[::-1], kind))
    if mode.endswith("+tRNS"):
        image = Image.new(mode.removesuffix("+tRNS"), size)
        image.info["transparency"] = 0 if len(mode) < 8 else (0, 0, 0)
        return image
    return Image.new(mode, size)

def process(recipe, image):
    if isinstance(image, bytes):
        reader = CheckedImageIO(ImageMediaIO(), (), seen, png.load)
        image = reader.load_bytes(image).media
    cutter = NemotronVLImageProcessor(512, resize=recipe, do_rescale=False)
    return len(cutter(images=image)["pixel_values_flat"])

loading._QUICK = 99  # CPU seconds
assert png.agrees_with_pillow()  # compile
seen = Seen(9)
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
    for case, pixels, peak, left in measured(cases, monkeypatch, tmp_path):
        assert peak <= 3 * pixels + 100, case
        assert left <= 40, case


@pytest.mark.parametrize(
    ("kind", "images"),
    [  # RGBA is laid on white; "whole": all pixels are in one chunk
        ("JPEG RGB", 1),
        ("PNG RGB", 1),
        ("PNG RGB whole", 1),
        ("PNG RGBA", 2),
    ],
)
def test_a_file_takes_its_pixels_a_band_and_the_tiles(
    kind, images, monkeypatch, tmp_path
):
    """Also if it is sent again."""
    cases = [(f"{kind} file", size, "fast") for size in (SQUARE, (2000, 8000))] * 2
    for case, pixels, peak, left in measured(cases, monkeypatch, tmp_path):
        assert peak <= images * pixels + 8.4 + 10.3 + 5, case
        assert left <= 5, case


def measured(cases, monkeypatch, tmp_path):
    """For each case: its pixels, the peak and what was left, in MB."""
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", str(PIXELS))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # freed memory goes back
    said = run_forked(exec, CODE, {"cases": cases}, output=tmp_path / "said.txt")
    lines = [line.partition("case ")[2] for line in said.splitlines()]
    found = [json.loads(line) for line in lines if line]
    assert len(found) == len(cases), said
    for mode, (width, height), recipe, peak, left in found:
        yield (mode, width, height, recipe), 4 * width * height / 1e6, peak, left
