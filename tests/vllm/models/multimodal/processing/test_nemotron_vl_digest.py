"""The digests of tiles: equal for equal tiles of one launch, and for no others."""

import io
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_digest import (
    NO_REUSE,
    tile_digest,
    tile_digests,
)


def process(image: Image.Image) -> list[bytes]:
    cutter = NemotronVLImageProcessor(64, do_rescale=False)
    found = cutter(images=image)
    assert len(found["tile_digests"]) == len(found["pixel_values_flat"])
    return [bytes(row) for row in found["tile_digests"].numpy()]


def test_a_file_cannot_switch_reuse_off():
    """Pillow makes the text chunks of a PNG file keys of `info`."""
    chunks = PngInfo()
    for key in ("nemotron_vl_no_reuse", str(NO_REUSE)):
        chunks.add_text(key, "1")
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=chunks)
    opened = Image.open(file)
    assert process(opened) == process(Image.new("RGB", (64, 64)))
    assert "nemotron_vl_no_reuse" in opened.info
    opened.info[NO_REUSE] = True
    assert not any(map(any, process(opened)))


def test_blank_tiles_of_a_page_have_the_same_digest():
    page = Image.new("RGB", (64 * 3, 64 * 4), "white")
    page.putpixel((0, 0), (0, 0, 0))
    found = process(page)
    assert len(found) == 13
    assert len(set(found)) == 3  # the corner, the thumbnail and eleven white tiles
    assert all(map(any, found))


def test_another_launch_has_other_digests():
    code = (
        "import torch; from vllm_nemotron_vl.transformers_utils.processors."
        "nemotron_vl_digest import tile_digest; "
        "print(tile_digest(torch.zeros(3, 64, 64, dtype=torch.uint8)).hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    theirs = run.stdout.split()[-1]
    ours = tile_digest(torch.zeros(3, 64, 64, dtype=torch.uint8)).hex()
    assert len(theirs) == len(ours) == 32
    assert theirs != ours


def test_profiling_encodes_every_tile(processor):
    """vLLM measures memory on copies of one image; reuse would encode only one."""
    dummy = processor.get_dummy_mm_inputs({"image": 1})
    (item,) = dummy["mm_kwargs"]["image"]
    assert len(item["tile_digests"].data) == 13
    assert not item["tile_digests"].data.any()


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 4), max_size=5))))
def test_rows_of_digests_are_equal_where_tiles_are(images):
    """Tiles of different kinds differ in the lowest bit of one pixel."""
    tiles = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    for kind in range(1, 5):
        tiles[kind].flatten()[11 * kind] = 1
    kinds = [kind if reuse else None for reuse, cut in images for kind in cut]
    found = tile_digests([tiles[cut] for _, cut in images], [r for r, _ in images])
    rows = [bytes(row) for row in found.numpy()]
    assert len(rows) == len(kinds)
    assert [any(row) for row in rows] == [kind is not None for kind in kinds]
    pairs = set(zip(kinds, rows, strict=True))
    assert len(pairs) == len(set(kinds)) == len(set(rows))


def test_each_image_says_whether_its_tiles_are_reused():
    tiles = [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)] * 2
    assert (
        tile_digests(tiles, [True, False]).any(1).tolist() == [True] * 2 + [False] * 2
    )
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        tile_digests(tiles, [True])
