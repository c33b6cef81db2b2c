"""Compare with what NVIDIA's own code of the model's time computed.

`tests/support/goldens` holds results of other people's code, not of ours:

- ``tower.safetensors``: a small C-RADIO tower with random weights, tiles, and the
  features that NVlabs/RADIO at b0f47ac (2025-05-26) computes of them in float32.
- ``grids.json``: the grids that NVIDIA/Megatron-LM at db8cd9aa3b (2025-06-13), in
  which the model was trained, chooses for 8,056 pairs of a size and a limit of tiles.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import support
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.errors import relative_error
from nemotron_vl.verify.reference import Reference
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    choose_grid,
)

GOLDENS = Path(*support.__path__) / "goldens"
TOWER = GOLDENS / "tower.safetensors"
GRIDS = json.loads((GOLDENS / "grids.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(TOWER)


@pytest.fixture(scope="module")
def write_golden(golden, tmp_path_factory):
    """A function that writes a checkpoint with the golden tower."""

    def write(**vision_options) -> Path:
        out = tmp_path_factory.mktemp("golden") / "checkpoint"
        make_checkpoint(
            out, tower_layers=1, tile_size=256, cpe_max_size=1024, dtype="float32"
        )
        config = json.loads((out / "config.json").read_text())
        with safe_open(TOWER, "pt") as file:
            published = json.loads(file.metadata()["config"])
        config["vision_config"] = published["vision_config"] | vision_options
        (out / "config.json").write_text(json.dumps(config))
        tensors = load_file(out / "model.safetensors")
        tower = {n: t.float() for n, t in golden.items() if n in tensors}
        assert tower.keys() == {n for n in tensors if n.startswith("vision_model.")}
        save_file(tensors | tower, out / "model.safetensors", {"format": "pt"})
        return out

    return write


def product_features(load_model, checkpoint: Path, pixels: torch.Tensor):
    model = load_model(checkpoint)
    return model.vision_model(model.input_conditioner(pixels))


def reference_features(checkpoint: Path, pixels: torch.Tensor):
    reference = Reference.load(checkpoint)
    return reference.tower(reference.condition(pixels))


def test_features_are_those_of_nvidias_code(load_model, write_golden, golden):
    checkpoint, pixels = write_golden(), golden["pixels"]
    found = product_features(load_model, checkpoint, pixels)
    assert relative_error(found, golden["features"]) < 1e-5
    found = reference_features(checkpoint, pixels)
    assert relative_error(found, golden["features"]) < 1e-5


def test_a_checkpoint_of_the_other_convention_has_other_features(
    load_model, write_golden, golden
):
    """Both of our sides agree also then, so only the golden features tell."""
    checkpoint = write_golden(pos_embed_align_corners=False)
    found = product_features(load_model, checkpoint, golden["pixels"])
    expected = reference_features(checkpoint, golden["pixels"])
    assert relative_error(found, expected) < 1e-5
    assert relative_error(found, golden["features"]) > 0.1


@pytest.mark.parametrize("most", sorted(GRIDS["max_tiles"], key=int))
def test_grids_are_those_of_nvidias_code(most, checkpoint):
    reference = Reference.load(checkpoint)
    reference.tile_size, reference.max_tiles = 512, int(most)
    for width, height, *expected in GRIDS["max_tiles"][most]:
        grid = choose_grid(
            width,
            height,
            image_size=512,
            min_tiles=1,
            max_tiles=int(most),
            use_thumbnail=True,
        )
        found = [grid.columns, grid.rows, grid.num_tiles]
        assert found == expected, (width, height)
        assert [*reference.choose_grid(width, height)] == expected[:2], (width, height)


def test_the_goldens_are_complete():
    assert sum(map(len, GRIDS["max_tiles"].values())) == 8056
