"""vLLM's compiled parts for CUDA, and what this project asks of them."""

import importlib
from importlib.metadata import version
from pathlib import Path

import pytest
import vllm

FOLDER = Path(*vllm.__path__)
PARTS = [
    ".".join(["vllm", *file.parent.relative_to(FOLDER).parts, file.name.split(".")[0]])
    for file in sorted(FOLDER.rglob("*.so"))
]

pytestmark = pytest.mark.skipif(
    version("vllm").endswith("+cpu"), reason="vLLM's build for CPUs has none"
)


@pytest.mark.parametrize("name", PARTS)
def test_a_compiled_part_is_imported(name):
    importlib.import_module(name)


def test_there_are_compiled_parts():
    assert {"vllm._C_stable_libtorch", "vllm.cumem_allocator"} <= set(PARTS)
