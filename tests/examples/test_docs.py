"""Run the command blocks that the README and the docs mark with ``<!-- run -->``.

Those marked with ``<!-- run in releases -->`` take minutes.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- run( in releases)? -->\n\n```bash\n(.*?)```", re.DOTALL)

BLOCKS = [
    pytest.param(
        block[2],
        id=f"{file.name} {number}",
        marks=[pytest.mark.releases] if block[1] else [],
    )
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(BLOCK.finditer(file.read_text()), 1)
]


def test_blocks_are_found():
    long = [block for block in BLOCKS if block.marks]
    assert len(long) >= 2
    assert len(BLOCKS) - len(long) >= 4


@pytest.mark.parametrize("block", BLOCKS)
def test_it_runs_as_written(block):
    done = subprocess.run(
        ["bash", "-ec", block], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
