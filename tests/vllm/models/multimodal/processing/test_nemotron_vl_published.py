"""The published ``preprocessor_config.json``, byte for byte, makes the processor.

`make_checkpoint` writes it where the sizes are the published ones, so all tests with
random checkpoints read a file of its form.
"""

import logging
import warnings

import pytest

from nemotron_vl.checkpoints.published_files import KNOWN_FILES, is_known
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from support.noise import noise
from support.processing import pixels, process

NAME = "preprocessor_config.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights, and tiles of the published size."""
    path = tmp_path_factory.mktemp("published") / "random"
    make_checkpoint(path, tower_layers=1, layers=1, tile_size=512, cpe_max_size=512)
    return path


def test_its_digest_is_the_published_one(checkpoint):
    assert (checkpoint / NAME).stat().st_size == 283
    assert is_known(checkpoint / NAME)
    assert KNOWN_FILES[NAME].startswith("63ed8d1a7d86")


def test_one_with_other_values_is_not_the_published_one(checkpoint, tmp_path):
    other = tmp_path / NAME
    other.write_text((checkpoint / NAME).read_text().replace("12", "13"))
    assert not is_known(other)


@pytest.mark.parametrize("trust", [False, True])
def test_it_is_read_without_a_warning(make_processor, processor, caplog, trust):
    # The fixture `processor` has imported what is needed, with warnings of others.
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        again = make_processor(trust_remote_code=trust)
        found = again.info.get_image_processor()
    assert caplog.records == []
    assert found.image_size == 512
    assert (found.min_dynamic_patch, found.max_dynamic_patch) == (1, 12)
    assert found.use_thumbnail and found.dynamic_image_size


def test_a_grey_page_has_twelve_tiles_of_rgb_and_a_thumbnail(processor):
    grey = noise(1536, 2048).convert("L")
    tiles = pixels(process(processor, "<image>", [grey]))
    assert tiles.shape == (13, 3, 512, 512)
