"""The examples run unchanged and their answers are right."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()

ANSWERS = {
    "disaggregated_client": ["640-27"],
    "multi_image": ["$12.50\\n640-27"],
    "offline_chat": ["'640-27'", "'6'"],
    "offline_generate": ["'$12.50'", "'640-27'"],
    "openai_client": ["$12.50"],
    "video_client": ["19"],
    "video_offline": ["tokens: '18'\n"],
}


# quantize is run by tests/vllm/quantization/, ray_data by test_ray_data.py
ELSEWHERE = {"quantize", "ray_data"}


def test_every_example_is_run():
    assert ANSWERS.keys() | ELSEWHERE == {file.stem for file in EXAMPLES.glob("*.py")}


# They start several servers, or an engine like that of another example.
SLOW = {"disaggregated_client", "multi_image", "video_client", "video_offline"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.releases if name in SLOW else ())
        for name in ANSWERS
    ],
)
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


def test_every_request_sets_the_temperature_to_zero():
    """A server may sample by the checkpoint's ``generation_config.json``."""
    sources = {f"README {at}": code for at, code in enumerate(python_blocks(README))}
    sources |= {file.name: file.read_text() for file in EXAMPLES.glob("*.py")}
    found = {name: temperatures(code) for name, code in sources.items()}
    assert len([name for name, values in found.items() if values]) >= len(ANSWERS) + 1
    assert {value for values in found.values() for value in values} == {"0"}


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def temperatures(code: str) -> list[str | None]:
    """The temperature of each request and of each body of a request."""
    found = []
    for node in ast.walk(ast.parse(code)):
        given, asks = {}, False
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            asks = ast.unparse(node.func).endswith((".create", "SamplingParams"))
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            given = {ast.unparse(k).strip("'"): ast.unparse(v) for k, v in pairs if k}
            asks = "max_tokens" in given
        if asks:
            found.append(given.get("temperature"))
    return found
