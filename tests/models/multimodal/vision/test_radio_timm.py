"""The native tower against timm's ViT with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.make_checkpoint import (
    make_checkpoint,
)

PREFIX = "vision_model.radio_model.model."
CONDITIONER = "vision_model.radio_model.input_conditioner."


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = found.double() - expected.double()
    return (difference.norm() / expected.double().norm()).item()


def timm_tower(checkpoint, dtype: torch.dtype, heads: int, tile: int):
    """C-RADIO's forward, written with timm's blocks."""
    stored = load_file(checkpoint / "model.safetensors")
    mean, std = (stored[CONDITIONER + n].float() for n in ("norm_mean", "norm_std"))
    weights = {
        name.removeprefix(PREFIX): tensor.to(dtype)
        for name, tensor in stored.items()
        if name.startswith(PREFIX)
    }
    generator = "patch_generator."
    tokens = weights[generator + "cls_token.token"]
    positions = weights[generator + "pos_embed"]
    embedder = weights[generator + "embedder.weight"]
    depth = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
    vit = VisionTransformer(
        img_size=tile, embed_dim=tokens.shape[1], depth=depth, num_heads=heads
    ).to(dtype)
    blocks = {
        name.removeprefix("blocks."): tensor
        for name, tensor in weights.items()
        if name.startswith("blocks.")
    }
    vit.blocks.load_state_dict(blocks)

    side, grid = tile // 16, round(positions.shape[1] ** 0.5)
    image = positions.float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
    positions = image.flatten(2).transpose(1, 2).to(dtype)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        pixels = ((pixels.float() / 255 - mean) / std).to(dtype)
        patches = F.unfold(pixels, 16, stride=16).transpose(1, 2) @ embedder.T
        x = torch.cat([tokens.expand(len(pixels), -1, -1), patches + positions], dim=1)
        return vit.blocks(x)[:, len(tokens) :]

    return forward


CASES = {
    "tiny": (dict(tower_layers=3), 6, 64),
    "base": (dict(tower="vit_base", tower_layers=2, tile_size=128), 12, 128),
    "huge": (
        dict(tower="vit_huge", tower_layers=2, tile_size=512, cpe_max_size=2048),
        16,
        512,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_tower_equals_timm(load_model, tmp_path, case, dtype, bound):
    options, heads, tile = CASES[case]
    make_checkpoint(tmp_path / "ckpt", **options)
    model = load_model(tmp_path / "ckpt", dtype)
    pixels = torch.randint(0, 256, (2, 3, tile, tile), dtype=torch.uint8)
    found = model.vision_model(model._condition(pixels))
    expected = timm_tower(tmp_path / "ckpt", getattr(torch, dtype), heads, tile)(pixels)
    assert found.dtype == getattr(torch, dtype)
    assert found.shape == expected.shape == (2, (tile // 16) ** 2, expected.shape[-1])
    assert relative_error(found, expected) < bound


def test_the_position_grid_is_kept_at_the_size_of_a_tile(load_model, checkpoint):
    model = load_model(checkpoint)
    grid = model.vision_model.model.patch_generator
    assert grid.pos_embed.shape == (1, 16, 384)  # the checkpoint has 256 positions
    stored = load_file(checkpoint / "model.safetensors")
    stored = stored[PREFIX + "patch_generator.pos_embed"].float()
    cropped = stored.reshape(16, 16, -1)[:4, :4].reshape(1, 16, -1)
    assert relative_error(grid.pos_embed, cropped) > 0.1
