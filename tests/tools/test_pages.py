"""Generated pages equal what their tools print."""

import subprocess
import sys
from pathlib import Path

import capacity_page
import encoder_ranks
import options_page
import settings_reference

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


def test_the_options_of_the_limits_page_are_made_from_the_tests():
    assert options_page.PAGE.read_text() == options_page.page()
    assert "| tile cache |" in options_page.section()


def test_the_scaling_page_has_the_computed_table():
    assert encoder_ranks.table() in (ROOT / "docs" / "scaling.md").read_text()
