"""The examples run unchanged and their answers are right."""

import ast
import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from support.forked import run_forked
from support.servers import forked_servers

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
INDEX = (ROOT / "docs" / "index.md").read_text()

ANSWERS = {
    "disaggregated_client": ["640-27"],
    "multi_image": ["$12.50\\n640-27"],
    "offline_chat": ["'640-27'", "'6'"],
    "offline_generate": ["'$12.50'", "'640-27'"],
    "openai_client": ["$12.50"],
    "video_client": ["\n19\n"],
    "video_offline": ["tokens: '18'\n"],
}


# quantize is run by tests/vllm/quantization/, ray_data by test_ray_data.py, and
# draw_documents by test_documents.py
ELSEWHERE = {"draw_documents", "quantize", "ray_data"}


def test_every_example_is_run():
    assert ANSWERS.keys() | ELSEWHERE == {file.stem for file in EXAMPLES.glob("*.py")}


def run(example: str, folder: str) -> None:
    os.chdir(folder)
    sys.argv = [example]
    with forked_servers():
        runpy.run_path(example, run_name="__main__")


@pytest.mark.parametrize("name", ANSWERS)
def test_example(name, tmp_path):
    """In a process that has imported vLLM."""
    file, output = EXAMPLES / f"{name}.py", tmp_path / "output.txt"
    printed = run_forked(run, str(file), str(tmp_path), output=output)
    for answer in ANSWERS[name]:
        assert answer in f"\n{printed}"


def test_every_request_sets_the_temperature_to_zero():
    """A server may sample by the checkpoint's ``generation_config.json``."""
    sources = {f"index.md {at}": code for at, code in enumerate(python_blocks(INDEX))}
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
