"""The grid of tiles that an image is cut into, and the pixels of each recipe."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import resize
from vllm.transformers_utils.processors.internvl import get_internvl_target_ratios
from vllm.transformers_utils.processors.nemotron_vl import (
    image_to_pixel_values_nemotron_vl,
)

from support.noise import noise
from support.processing import (
    SIZES,
    TILE,
    grid_by_the_rule,
    scores_by_the_rule,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    _candidate_grids,
    choose_grid,
)

lengths = st.integers(1, 40) | st.integers(1, 20_000)


@settings(max_examples=500, deadline=None)
@given(
    size=st.sampled_from(SIZES) | st.tuples(lengths, lengths),
    tile=st.sampled_from([64, 512]) | st.integers(1, 1024),
    limits=st.sampled_from([(1, 12), (1, 6), (4, 12), (1, 1)])
    | st.tuples(st.integers(1, 20), st.integers(1, 20)).map(sorted),
    use_thumbnail=st.booleans(),
)
def test_the_grid_follows_the_rule(size, tile, limits, use_thumbnail):
    fewest, most = limits
    grid = choose_grid(
        *size,
        image_size=tile,
        min_tiles=fewest,
        max_tiles=most,
        use_thumbnail=use_thumbnail,
    )
    scores = scores_by_the_rule(*size, tile, fewest, most)
    # Several may be equally good; another test has their order.
    assert scores[grid[:2]] == max(scores.values())
    tiles = grid.columns * grid.rows
    assert grid.num_tiles == tiles + (use_thumbnail and tiles > 1)


@pytest.mark.parametrize("tile", [64, 512])
@pytest.mark.parametrize(("fewest", "most"), [(1, 12), (1, 6), (4, 12), (1, 1)])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_grids_of_ordinary_limits(width, height, fewest, most, tile):
    settings = {"image_size": tile, "min_tiles": fewest, "max_tiles": most}
    found = choose_grid(width, height, **settings, use_thumbnail=False)
    assert found[:2] == grid_by_the_rule(width, height, tile, fewest, most)


@pytest.mark.parametrize("limits", [(1, 12), (1, 6), (2, 3), (4, 12), (5, 40)])
def test_equally_good_grids_are_tried_in_vllms_order(limits):
    assert _candidate_grids(*limits) == get_internvl_target_ratios(*limits)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pixels_equal_vllms_in_tree_ones(width, height):
    image = noise(width, height)
    tiles = tile_with("exact", image)
    in_tree = image_to_pixel_values_nemotron_vl(
        image, input_size=TILE, min_num=1, max_num=12, use_thumbnail=True
    )
    assert tiles.dtype == torch.uint8
    assert torch.equal(tiles.float() / 255, in_tree)


def tile_with(recipe: str, image: Image.Image, tile: int = TILE) -> torch.Tensor:
    cutter = NemotronVLImageProcessor(tile, resize=recipe, do_rescale=False)
    return cutter(images=image)["pixel_values_flat"]


@pytest.mark.parametrize("tile", [64, 512])
def test_the_fast_recipe_is_close_to_the_exact_one(photo, page, tile):
    rng = np.random.default_rng(0)
    edges = Image.fromarray(rng.integers(0, 2, (555, 777, 3), np.uint8) * 255)
    for image in (photo, page, edges, *(noise(*size) for size in SIZES)):
        fast, exact = (tile_with(r, image, tile) for r in ("fast", "exact"))
        assert fast.shape == exact.shape
        assert fast.is_contiguous() and fast.dtype == torch.uint8
        assert (fast.int() - exact.int()).abs().max() <= 2, image.size


@pytest.mark.parametrize("recipe", ["fast", "exact"])
def test_an_image_of_a_tiles_size_is_not_resampled(recipe):
    image = noise(TILE, TILE)
    (tile,) = tile_with(recipe, image)
    assert torch.equal(tile, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(512, 512), (640, 480), (100, 300)])
def test_the_checkpoints_own_recipe_doubles_the_image_first(size):
    image = noise(*size)
    doubled = image.resize((2 * size[0], 2 * size[1]), Image.Resampling.BILINEAR)
    columns, rows = grid_by_the_rule(*doubled.size, 512, 1, 12)
    whole = torch.from_numpy(np.array(doubled)).permute(2, 0, 1)
    resized = resize(whole, [rows * 512, columns * 512], antialias=True)
    expected = [
        resized[:, y * 512 : (y + 1) * 512, x * 512 : (x + 1) * 512]
        for y in range(rows)
        for x in range(columns)
    ]
    if len(expected) > 1:
        expected.append(resize(whole, [512, 512], antialias=True))
    assert torch.equal(tile_with("hf", image, 512), torch.stack(expected))
    if size == (512, 512):
        assert (len(tile_with("exact", image, 512)), len(expected)) == (1, 5)
