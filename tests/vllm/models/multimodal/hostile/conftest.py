"""A checkpoint to damage, and a bound on the memory of each test."""

import shutil
from pathlib import Path

import pytest

from support.hostile import bounded_memory

MEGABYTES = 600


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint to damage."""
    return shutil.copytree(checkpoint, tmp_path / "spoiled")


@pytest.fixture(autouse=True)
def bounded():
    """Bound the memory that each test takes."""
    with bounded_memory(MEGABYTES):
        yield
