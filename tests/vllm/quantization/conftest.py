"""Checkpoints with a ``quantization_config`` of a test's own."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def with_quantisation(tmp_path):
    """Copy a checkpoint with another ``quantization_config``."""

    def write(source: Path, quantisation: dict, nested: bool = False) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "checkpoint"
        shutil.copytree(source, folder)
        config = json.loads((folder / "config.json").read_text())
        config.pop("quantization_config", None)
        place = config["llm_config"] if nested else config
        place["quantization_config"] = quantisation
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write
