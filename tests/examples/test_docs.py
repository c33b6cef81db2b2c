"""Run the command blocks that the README and the docs mark with ``<!-- run -->``."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARK = "<!-- run -->\n\n```bash\n"

BLOCKS = [
    pytest.param(block.partition("```")[0], id=f"{file.name} {number}")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(file.read_text().split(MARK)[1:], 1)
]


def test_blocks_are_found():
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("block", BLOCKS)
def test_it_runs_as_written(block):
    done = subprocess.run(
        ["bash", "-ec", block], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
