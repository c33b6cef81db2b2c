# SPDX-License-Identifier: Apache-2.0
"""The models that find and rank pages, in plain PyTorch and transformers.

Independent of the product, as ``reference.py``, whose preprocessing and pixel shuffle
are those of these models, too.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from .reference import Reference


class RetrievalReference(Reference):
    """SigLIP, pixel shuffle, MLP and a Llama whose tokens all see each other.

    Args:
        folder: The checkpoint, whose tensors are read in float32.
    """

    def __init__(self, folder: Path) -> None:
        nn.Module.__init__(self)
        self.config = config = json.loads((folder / "config.json").read_text())
        processor = json.loads((folder / "processor_config.json").read_text())
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.tile_size = config["force_image_size"]
        self.max_tiles = processor["max_input_tiles"]
        self.use_thumbnail = processor["use_thumbnail"]
        self.shuffle = round(1 / config["downsample_ratio"])
        vision = SiglipVisionConfig(**config["vision_config"])
        self.patch_size = vision.patch_size
        self.siglip = SiglipVisionModel(vision)
        merged = vision.hidden_size * self.shuffle**2
        llm = LlamaConfig(**config["llm_config"])
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged),
            nn.Linear(merged, llm.hidden_size),
            nn.GELU(),
            nn.Linear(llm.hidden_size, llm.hidden_size),
        )
        # The eager attention adds the mask as it is given.
        llm._attn_implementation = "eager"
        self.llama = LlamaModel(llm)
        self.score_head: nn.Linear | None = None
        tensors = load_file(folder / "model.safetensors")
        if "score.weight" in tensors:
            self.score_head = nn.Linear(llm.hidden_size, 1, bias=False)
        self.load_state_dict(
            {self.own_name(name): tensor.float() for name, tensor in tensors.items()}
        )
        self.eval().requires_grad_(False)

    @staticmethod
    def own_name(name: str) -> str:
        """The name in this module of a tensor of the checkpoint."""
        for prefix, own in {
            "vision_model.vision_model.": "siglip.",
            "language_model.": "llama.",
            "score.": "score_head.",
        }.items():
            if (bare := name.removeprefix("model.")).startswith(prefix):
                return own + bare.removeprefix(prefix)
        return bare

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        scaled = (pixels.float() / 255 - 0.5) / 0.5
        return self.connect(self.siglip(scaled).last_hidden_state)

    def image_tokens(self, tiles: int) -> str:
        side = self.tile_size // self.patch_size // self.shuffle
        return f"<img>{'<IMG_CONTEXT>' * tiles * side * side}</img>"

    def pooled(self, prompt: str, images: list[Image.Image]) -> torch.Tensor:
        """The mean of the final states of all tokens.

        Args:
            prompt: With ``<image>`` for each image, without the token of its beginning.
            images: RGB.
        """
        pixels = [self.to_pixels(image) for image in images]
        # Without an image, the first `<image>` stands for nothing, others are text.
        text = prompt.replace("<image>", "", 1)
        if pixels:
            text = self.expand(prompt, [*map(len, pixels)])
        ids = torch.tensor([self.tokenizer.encode(text)])
        embeds = self.llama.embed_tokens(ids).clone()
        if pixels:
            context = self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
            embeds[ids == context] = self.encode(torch.cat(pixels)).flatten(0, 1)
        length = ids.shape[1]
        states = self.llama(
            inputs_embeds=embeds, attention_mask=torch.zeros(1, 1, length, length)
        )
        return states.last_hidden_state[0].mean(0)

    def logit(self, prompt: str, images: list[Image.Image]) -> float:
        """The score of a question and a passage before the sigmoid."""
        assert self.score_head is not None
        return self.score_head(self.pooled(prompt, images)).item()
