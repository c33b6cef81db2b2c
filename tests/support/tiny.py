"""Sizes of the embedded checkpoint, which a new training may change."""

import json
from pathlib import Path

from vllm_nemotron_vl.assets.nemotron_vl import tiny_checkpoint

_CONFIG = json.loads((Path(tiny_checkpoint()) / "config.json").read_text())

TILE: int = _CONFIG["force_image_size"]  # pixels of a side
TILE_TOKENS = round((TILE / _CONFIG["patch_size"] * _CONFIG["downsample_ratio"]) ** 2)
WIDTH: int = _CONFIG["llm_config"]["hidden_size"]  # of an embedding
