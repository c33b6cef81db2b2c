"""vLLM's compiled parts for CUDA, and what this project asks of them."""

import importlib
from pathlib import Path

import pytest
import torch
import vllm

FOLDER = Path(*vllm.__path__)
PARTS = [f"vllm.{file.name.partition('.')[0]}" for file in FOLDER.glob("*.so")]

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None, reason="vLLM's build for CPUs has none"
)


@pytest.mark.parametrize("name", PARTS)
def test_a_compiled_part_is_imported(name):
    importlib.import_module(name)
