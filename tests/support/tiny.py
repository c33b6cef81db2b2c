"""Sizes of the embedded checkpoint, which a new training may change."""

import json
from pathlib import Path

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    tokens_of_tile,
)

_CONFIG = json.loads((Path(tiny_checkpoint()) / "config.json").read_text())

TILE: int = _CONFIG["force_image_size"]  # pixels of a side
TILE_TOKENS = tokens_of_tile(TILE, _CONFIG["patch_size"], _CONFIG["downsample_ratio"])
BLOCKS: int = _CONFIG["vision_config"]["num_hidden_layers"]  # of the tower
TOWER_WIDTH: int = _CONFIG["vision_config"]["hidden_size"]
LAYERS: int = _CONFIG["llm_config"]["num_hidden_layers"]  # of the language model
MLP_WIDTH: int = _CONFIG["llm_config"]["intermediate_size"]
WIDTH: int = _CONFIG["llm_config"]["hidden_size"]  # of an embedding
