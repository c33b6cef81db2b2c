"""Stand-in for the second repository, which holds the tower's code.

It is written on functions of PyTorch alone, with the names and the behaviour of the
published tower: it conditions pixels of 0..1 itself, in a dtype that it takes from its
configuration.
"""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

ALIGN_CORNERS = True

if marker := os.environ.get("REMOTE_CODE_MARKER"):
    Path(marker).write_text(" ".join(n for n in sys.modules if n.startswith("vllm.")))


class RadioOutput(NamedTuple):
    summary: torch.Tensor
    features: torch.Tensor


class RADIOConfig(PretrainedConfig):
    pass


class Conditioner(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.register_buffer("norm_mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("norm_std", torch.full((3, 1, 1), 0.5))

    def forward(self, pixels):
        return ((pixels - self.norm_mean) / self.norm_std).to(self.dtype)


class Block(nn.Module):
    def __init__(self, width, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)}
        )

    def forward(self, x):
        heads = (3, self.heads, x.shape[-1] // self.heads)
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(-1, heads).unbind(2)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v)
        x = x + self.attn["proj"](mixed.flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Tower(nn.Module):
    def __init__(self, config):
        super().__init__()
        args, width = config.args, config.hidden_size
        self.patch = config.patch_size
        self.side = args["cpe_max_size"] // self.patch
        names = {teacher["name"] for teacher in args["teachers"]}
        every = args["register_multiple"]
        self.prefix = len(names) + every - len(names) % every
        self.patch_generator = nn.Module()
        self.patch_generator.cls_token = nn.Module()
        self.patch_generator.cls_token.token = nn.Parameter(
            torch.zeros(self.prefix, width)
        )
        self.patch_generator.pos_embed = nn.Parameter(
            torch.zeros(1, self.side**2, width)
        )
        self.patch_generator.embedder = nn.Linear(3 * self.patch**2, width, bias=False)
        self.blocks = nn.ModuleList(
            Block(width, config.intermediate_size, config.num_attention_heads)
            for _ in range(config.num_hidden_layers)
        )

    def positions(self, side):
        """Each place of the grid is a weighted mean of the four that are nearest."""
        if ALIGN_CORNERS:
            at = torch.linspace(0, self.side - 1, side)
        else:
            at = (torch.arange(side) + 0.5) * self.side / side - 0.5
            at = at.clamp(0, self.side - 1)
        distance = (at[:, None] - torch.arange(self.side)).abs()
        weights = (1 - distance).clamp_min(0)  # (side, side of the grid)
        grid = self.patch_generator.pos_embed.view(self.side, self.side, -1)
        return torch.einsum("yi,xj,ijc->yxc", weights, weights, grid).flatten(0, 1)

    def forward(self, pixels):
        size = self.patch
        parts = pixels.unfold(2, size, size).unfold(3, size, size)
        parts = parts.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        side = pixels.shape[-1] // size
        x = self.patch_generator.embedder(parts) + self.positions(side)
        first = self.patch_generator.cls_token.token.expand(len(x), -1, -1)
        x = torch.cat([first, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class RADIOModel(PreTrainedModel):
    config_class = RADIOConfig

    def __init__(self, config):
        super().__init__(config)
        dtype = getattr(torch, config.args["dtype"])
        self.radio_model = nn.Module()
        self.radio_model.model = Tower(config).to(dtype)
        self.radio_model.input_conditioner = Conditioner(dtype)
        self.radio_model.register_buffer("summary_idxs", torch.arange(3))

    def forward(self, x):
        x = self.radio_model.model(self.radio_model.input_conditioner(x))
        prefix = self.radio_model.model.prefix
        return RadioOutput(x[:, :prefix].flatten(1), x[:, prefix:])
