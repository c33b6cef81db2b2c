"""Generated pages equal what their tools print."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import capacity_page
import encoder_ranks
import machines_table
import options_page
import settings_reference
from support.device_trace import BLOCKS, KERNELS_OF_A_PAGE
from support.loading import make_config
from vllm_nemotron_vl.config.nemotron_vl_options import graph_tiles
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    choose_grid,
)

ROOT = Path(__file__).parents[2]


def test_the_sizing_page_has_the_printed_table(tmp_path):
    command = [sys.executable, ROOT / "tools" / "sizing_table.py", tmp_path / "sizing"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| language model | 8,0" in printed
    assert printed.strip() in (ROOT / "docs" / "sizing.md").read_text()


def test_the_settings_page_is_made_from_the_code():
    assert settings_reference.PAGE.read_text() == settings_reference.page()
    for setting in ("max_dynamic_patch", "resize", "tile_cache_mb"):
        assert f"| `{setting}` |" in settings_reference.page()


def test_the_capacity_page_is_made_from_its_data():
    assert capacity_page.PAGE.read_text() == capacity_page.page()


def test_the_machines_page_has_the_computed_table():
    assert machines_table.PAGE.read_text() == machines_table.page()


def test_the_options_of_the_limits_page_are_made_from_the_tests():
    assert options_page.PAGE.read_text() == options_page.page()
    assert "| tile cache |" in options_page.section()


def test_the_scaling_page_has_the_computed_table():
    assert encoder_ranks.table() in (ROOT / "docs" / "scaling.md").read_text()


def test_pages_fill_their_graphs():
    """Images of any size and shape: the figures of docs/encoder.md."""
    rng = random.Random(0)
    received, padded = 0, Counter()
    rule = dict(image_size=512, min_tiles=1, max_tiles=12, use_thumbnail=True)
    for _ in range(20_000):
        width, height = (rng.uniform(500, 3000) for _ in range(2))
        tiles = choose_grid(int(width), int(height), **rule).num_tiles
        received += tiles
        for name, sizes in ("ours", graph_tiles(13, 8)), ("twos", [1, 2, 4, 8, 16]):
            padded[name] += next(size for size in sizes if size >= tiles) - tiles
    shares = {name: round(100 * count / received, 1) for name, count in padded.items()}
    page = (ROOT / "docs/encoder.md").read_text()
    assert f"{shares['twos']} % more tiles" in page, shares
    assert f"{shares['ours']} % more" in page, shares


@pytest.mark.parametrize("engine", ["encoder", "reader"])
def test_the_documented_configurations_of_mooncake_are_parsed(tiny, engine):
    """By vLLM's parsers; the connector itself needs other hardware."""
    from vllm.distributed.ec_transfer.ec_connector.mooncake.config import (
        MooncakeECConfig,
    )

    page = (ROOT / "docs/disaggregation.md").read_text()
    block = page.split(f"<!-- mooncake {engine} -->\n\n```json\n")[1]
    config = make_config(
        tiny, "float32", ec_transfer_config=json.loads(block.split("```")[0])
    )
    found = MooncakeECConfig.from_vllm_config(config)
    assert (found.is_producer, found.is_consumer) == (
        engine == "encoder",
        engine == "reader",
    )
    assert found.protocol == "rdma" and found.pool_size == 4_000_000_000


def test_the_documented_number_of_kernels():
    text = " ".join((ROOT / "docs/encoder.md").read_text().split())
    before = KERNELS_OF_A_PAGE + 2 * BLOCKS  # products with layer scales of one
    assert f"page of 13 tiles takes {KERNELS_OF_A_PAGE} kernels, not {before}" in text
