"""The tables of docs/sizing.md are what the command prints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_what_is_printed(tmp_path):
    command = [sys.executable, ROOT / "tools" / "sizing_table.py", tmp_path / "sizing"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| language model | 8,0" in printed
    assert printed.strip() in (ROOT / "docs" / "sizing.md").read_text()
