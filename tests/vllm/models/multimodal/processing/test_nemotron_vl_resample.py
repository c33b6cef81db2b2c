"""The compiled resampling equals Pillow's at any size."""

import errno
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.noise import noise
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    memory,
    passes,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    resample as resampling,
)

# Size of the image; columns and rows of the tiles; side of a tile.
CASES = [
    ((1700, 2200), (3, 4), 512),
    ((1920, 1080), (4, 2), 512),  # resampled along columns first
    ((640, 480), (4, 3), 512),
    ((1, 3000), (1, 12), 64),
    ((3000, 1), (12, 1), 64),
    ((1, 1), (1, 1), 64),
    ((64, 300), (1, 1), 64),  # one axis keeps its size
    ((300, 64), (1, 1), 64),
    ((2600, 2500), (1, 1), 64),  # Pillow stores it in several blocks
]

PHOTOGRAPHS = ["astronaut", "coffee", "chelsea", "rocket", "page", "text", "camera"]


def resample_into(parts: np.ndarray, image: Image.Image, precision="float64"):
    for band in resampling.bands(image, [parts], precision):
        band()


def resample(image: Image.Image, grid: tuple[int, int], side: int) -> np.ndarray:
    parts = np.empty((grid[1], grid[0], 3, side, side), np.uint8)
    resample_into(parts, image)
    return parts


def cut(image: Image.Image, grid: tuple[int, int], side: int) -> np.ndarray:
    """The tiles of the image as Pillow resizes it."""
    columns, rows = grid
    whole = np.asarray(image.resize((columns * side, rows * side)))
    lines = [np.split(line, columns, axis=1) for line in np.split(whole, rows)]
    return np.array(lines).transpose(0, 1, 4, 2, 3)


@pytest.mark.parametrize(("size", "grid", "side"), CASES, ids=str)
def test_values_equal_pillows(size, grid, side):
    assert resampling.agrees_with_pillow()
    image = noise(*size)
    assert np.array_equal(resample(image, grid, side), cut(image, grid, side))


sides = st.integers(1, 300)


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(sides, sides),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    side=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_values_equal_pillows_at_any_size(size, grid, side, seed):
    image = noise(*size, seed)
    assert np.array_equal(resample(image, grid, side), cut(image, grid, side))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (301, 77), (2600, 2500)])
def test_doubled_values_equal_pillows(size):
    image = noise(*size)
    twice = (2 * image.width, 2 * image.height)
    expected = np.asarray(image.resize(twice, Image.Resampling.BILINEAR))
    bands = dict(resampling.doubled_bands(image))
    assert np.array_equal(np.concatenate([*bands.values()]), expected)
    assert [*bands] == [*np.cumsum([0, *map(len, bands.values())])[:-1]]


@pytest.mark.parametrize("size", [(30, 20), (2600, 2500)])
def test_pixels_outlive_their_image(size):
    pixels = memory.rgbx_pixels(noise(*size))
    gc.collect()
    other = [noise(*size, 1) for _ in range(3)]  # would reuse freed memory
    assert np.array_equal(pixels[..., :3], np.asarray(noise(*size)))
    del other


def test_pillow_is_used_if_the_values_differ(monkeypatch):
    """Another release of Pillow may change its rounding or the order of its passes."""
    monkeypatch.setattr(resampling, "pillow_resizes_columns_first", lambda *_: False)
    fresh = resampling.agrees_with_pillow.__wrapped__
    assert not fresh()
    monkeypatch.setattr(resampling, "agrees_with_pillow", fresh)
    image = noise(1920, 1080)
    assert np.array_equal(resample(image, (4, 2), 64), cut(image, (4, 2), 64))


@pytest.mark.parametrize(
    "error", [EOFError(), UnpicklingError(), OSError(errno.ENOSPC, "full")], ids=repr
)
def test_pillow_is_used_if_the_loops_cannot_be_loaded(monkeypatch, error):
    """numba's cache is damaged, or its disk is full."""

    def fail(*_) -> None:
        raise error

    for name in ("rows_first", "columns_first"):
        monkeypatch.setattr(resampling, name, fail)
    fresh = resampling.agrees_with_pillow.__wrapped__
    monkeypatch.setattr(resampling, "agrees_with_pillow", fresh)
    image = noise(300, 200)
    warned = []
    monkeypatch.setattr(resampling.logger, "warning", lambda *said: warned.append(said))
    assert np.array_equal(resample(image, (2, 2), 64), cut(image, (2, 2), 64))
    assert warned and warned[0][-1] is error
    ((top, pixels),) = resampling.doubled_bands(image)
    expected = image.resize((600, 400), Image.Resampling.BILINEAR)
    assert top == 0 and np.array_equal(pixels, np.asarray(expected))


def test_the_loops_are_kept_for_other_processes(tmp_path):
    """With the code of this processor, until their source changes."""
    folder = tmp_path / "copied"  # it needs nothing else of the package
    shutil.copytree(Path(passes.__file__).parent, folder)
    code = (
        "from copied.passes import planes_to_pixels as f; import numpy as np; "
        "f(np.zeros((3, 2, 2), np.uint8)); "
        "print(sum(f.stats.cache_hits.values()), sum(f.stats.cache_misses.values()))"
    )
    # The folder that users choose.
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def hits_and_misses() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.check_output(
            command, env=environment, text=True, cwd=tmp_path
        ).strip()

    assert [hits_and_misses(), hits_and_misses()] == ["0 1", "1 0"]
    assert [*(tmp_path / "cache").rglob("*.nbi")]
    with (folder / "vectors.py").open("a") as sibling:
        sibling.write("# another version\n")
    assert [hits_and_misses(), hits_and_misses()] == ["0 1", "1 0"]


def test_float32_is_within_two_levels_at_random_sizes():
    """And equal in all but one value of ten thousand, of noise."""
    rng = np.random.default_rng(2)
    differing = values = 0
    for number in range(200):
        size = tuple(rng.integers(1, 300, 2).tolist())
        grid = tuple(rng.integers(1, 5, 2).tolist())
        side = int(rng.integers(1, 80))
        image = noise(*size, number)
        fast = np.empty((grid[1], grid[0], 3, side, side), np.uint8)
        resample_into(fast, image, "float32")
        exact = resample(image, grid, side).astype(int)
        assert np.abs(fast - exact).max() <= 2, (size, grid, side)
        differing += np.count_nonzero(fast != exact)
        values += fast.size
    assert differing < values / 10_000


def test_float32_equals_nearly_all_values_of_photographs():
    """docs/preprocessing.md states the number."""
    import skimage.data

    differing = values = 0
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        for share in (0.7, 1, 2.3):
            size = [int(share * side) for side in photograph.size]
            image = photograph.resize(size)
            fast = np.empty((2, 2, 3, 512, 512), np.uint8)
            resample_into(fast, image, "float32")
            exact = resample(image, (2, 2), 512)
            assert np.abs(fast.astype(int) - exact).max() <= 1, (name, size)
            differing += np.count_nonzero(fast != exact)
            values += fast.size
    print(f"{differing} of {values} values differ")
    assert differing < values / 50_000


@pytest.mark.parametrize("new_size", [1, 7, 64, 512, 1536, 2048, 6144])
def test_the_bound_of_the_weights_holds(new_size):
    """Of which the bound of float32 is derived."""
    for size in (1, 2, 3, 5, 16, 77, 300, 512, 1700, 2200, 4032, 1 << 17):
        _, _, weights = resampling._weights(size, new_size, "float64")
        assert np.abs(weights).sum(axis=1).max() < 1.5
        assert np.array_equal(weights, weights.astype(np.float32))


@settings(max_examples=80, deadline=None)
@given(
    case=st.sampled_from(CASES)
    | st.tuples(
        st.tuples(sides, sides),
        st.tuples(st.integers(1, 3), st.integers(1, 4)),
        st.integers(1, 150),
    ),
    precision=st.sampled_from(["float32", "float64"]),
    parts=st.integers(1, 40),
    order=st.randoms(use_true_random=False),
)
def test_bands_give_the_values_of_the_whole(case, precision, parts, order):
    """Any number of bands, in any order; a row that none writes stays zero."""
    size, grid, side = case
    image = noise(*size)
    whole, out = np.zeros((2, grid[1], grid[0], 3, side, side), np.uint8)
    resample_into(whole, image, precision)
    bands = resampling.bands(image, [out], precision, parts)
    order.shuffle(bands)
    for band in bands:
        band()
    assert np.array_equal(whole, out)
