"""The examples run unchanged and their answers are right."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

ANSWERS = {
    "disaggregated_client": ["640-27"],
    "multi_image": ["$12.50\\n640-27"],
    "offline_chat": ["'640-27'", "'6'"],
    "offline_generate": ["'$12.50'", "'640-27'"],
    "openai_client": ["$12.50"],
    "video_client": ["19"],
    "video_offline": ["tokens: '18'\n"],
}


# quantize is run by tests/quantization/, ray_data by test_ray_data.py
ELSEWHERE = {"quantize", "ray_data"}


def test_every_example_is_run():
    assert ANSWERS.keys() | ELSEWHERE == {file.stem for file in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("name", ANSWERS)
def test_example(name, tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    for answer in ANSWERS[name]:
        assert answer in result.stdout
