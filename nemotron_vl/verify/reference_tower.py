# SPDX-License-Identifier: Apache-2.0
"""The reference's vision tower, C-RADIO, on the blocks of timm's ViT."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# Width, blocks and heads of C-RADIO's towers; their MLPs are four times as wide.
TOWERS = {
    "vit_small_patch16_224": (384, 12, 6),
    "vit_base_patch16_224": (768, 12, 12),
    "vit_large_patch16_224": (1024, 24, 16),
    "vit_huge_patch16_224": (1280, 32, 16),
}


class RadioTower(nn.Module):
    """C-RADIO: a ViT with class tokens, register tokens and a large position grid."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        args = config["args"]
        width, depth, heads = TOWERS[args["model"]]
        width = config.get("hidden_size", width)
        self.patch_size = config["patch_size"]
        tokens = 1
        if args.get("cls_token_per_teacher"):
            tokens = len({teacher["name"] for teacher in args.get("teachers") or []})
        if multiple := args.get("register_multiple"):
            tokens = (tokens // multiple + 1) * multiple  # register tokens fill it up
        self.grid = args["cpe_max_size"] // self.patch_size
        self.align_corners = config.get("pos_embed_align_corners", True)
        self.prefix = nn.Parameter(torch.zeros(tokens, width))
        self.positions = nn.Parameter(torch.zeros(1, self.grid**2, width))
        self.embedder = nn.Linear(3 * self.patch_size**2, width, bias=False)
        # Only the blocks are used, not timm's embedding, positions and final norm.
        self.vit = VisionTransformer(
            img_size=self.patch_size,
            patch_size=self.patch_size,
            embed_dim=width,
            depth=config.get("num_hidden_layers", depth),
            num_heads=config.get("num_attention_heads", heads),
            mlp_ratio=config.get("intermediate_size", 4 * width) / width,
        )
        self.blocks = self.vit.blocks
        del self.vit

    def resize_positions(self, rows: int, columns: int) -> torch.Tensor:
        """The position grid, resized to the longer side and cropped to the shorter."""
        side = max(rows, columns)
        grid = self.positions.float().reshape(1, self.grid, self.grid, -1)
        grid = F.interpolate(
            grid.permute(0, 3, 1, 2),
            (side, side),
            mode="bilinear",
            align_corners=self.align_corners,
        )
        grid = grid[:, :, :rows, :columns].flatten(2).transpose(1, 2)
        return grid.to(self.positions.dtype)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Conditioned pixels (n, 3, h, w) to patch features (n, patches, width)."""
        rows, columns = (side // self.patch_size for side in pixels.shape[2:])
        patches = F.unfold(pixels, self.patch_size, stride=self.patch_size)
        x = self.embedder(patches.transpose(1, 2)) + self.resize_positions(
            rows, columns
        )
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        return self.blocks(x)[:, len(self.prefix) :]
