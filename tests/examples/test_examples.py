"""The examples and the demo run as they are written."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(script, tmp_path):
    result = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    if script.stem == "demo":
        lines = result.stdout.splitlines()
        assert sum(line.startswith("ok ") for line in lines) == 5
        assert lines[-1] == "All answers came."
