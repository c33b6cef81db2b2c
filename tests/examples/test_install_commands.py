"""Each command that a page or a message recommends for an installation resolves."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_nemotron_vl.config import nemotron_vl_names

ROOT = Path(__file__).parents[2]
WORD = r'"[^"`\n]+"|[-\w./\[\]=<>{}]+'
COMMAND = re.compile(rf"(pip|apt-get) install((?: +(?:{WORD}))+)")
# What messages put in.
VALUES = {
    "{wanted}": f"vllm{nemotron_vl_names.tested_range()}",
    "{missing}": "jsonschema lancedb openai pypdfium2 pyarrow",
    "{package}": "g++ libnuma1",
}


def pages_and_messages() -> Iterator[Path]:
    for folder in ("docs", "examples", "nemotron_vl", "vllm"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".md", ".py"):
                yield file
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))


def recommended() -> list[tuple[str, str]]:
    found = set()
    for file in pages_and_messages():
        for program, words in COMMAND.findall(file.read_text()):
            for name, value in VALUES.items():
                words = words.replace(name, value)
            found.add((program, re.sub(r"(?<=\w)[.,]+$", "", words.strip())))
    return sorted(found)


RECOMMENDED = recommended()


def test_the_commands_of_the_pages_are_found():
    assert ("pip", '".[cuda]"') in RECOMMENDED
    assert not [words for _, words in RECOMMENDED if "{" in words]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A new environment, with nothing in it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin/python"


@pytest.mark.releases
@pytest.mark.parametrize(("program", "words"), RECOMMENDED)
def test_it_resolves(environment, program, words):
    if program == "apt-get":
        if shutil.which(program) is None:
            pytest.skip("apt-get is missing")
        command = [program, "install", "--simulate", *shlex.split(words)]
    else:
        command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run"]
        command += ["--python", environment, *shlex.split(words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
