# SPDX-License-Identifier: Apache-2.0
"""Llama-3.1-Nemotron-Nano-VL in plain PyTorch, transformers and timm.

An independent implementation to compare the engine with. It is written from the
definition of the architecture. It and its tower (``reference_tower.py``) import nothing
else of this package and nothing of vLLM. It is made to be read, not to be fast. Each
step is a method of its own, so that a test can replace it.
"""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from .reference_tower import RadioTower

# Of CLIP's pixels in 0..1, for checkpoints that hold none.
STATISTICS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}


class Reference(nn.Module):
    """The whole model with its preprocessing.

    Args:
        config: Content of ``config.json``.
        preprocessor: Content of ``preprocessor_config.json``.
        tokenizer: The checkpoint's tokenizer.
        encoder_only: Leave out the language model.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        config: dict,
        preprocessor: dict,
        tokenizer: PreTrainedTokenizerFast,
        encoder_only: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.tile_size = config["force_image_size"]
        self.max_tiles = preprocessor["max_num_tiles"]
        self.use_thumbnail = preprocessor["use_thumbnail"]
        self.tower = RadioTower(config["vision_config"])
        for name, values in STATISTICS.items():
            self.register_buffer(name, torch.tensor(values, device="cpu"))
        self.shuffle = round(1 / config["downsample_ratio"])
        merged = config["vit_hidden_size"] * self.shuffle**2
        llm_config = LlamaConfig(**config["llm_config"])
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(merged),
            nn.Linear(merged, config["projector_hidden_size"]),
            nn.GELU(),
            nn.Linear(config["projector_hidden_size"], llm_config.hidden_size),
        )
        self.language_model: Any = None
        if not encoder_only:
            self.language_model = LlamaForCausalLM(llm_config)

    @classmethod
    def empty(cls, folder: Path, encoder_only: bool = False) -> "Reference":
        """Without weights, which is enough for the preprocessing."""
        config = json.loads((folder / "config.json").read_text())
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        with torch.device("meta"):
            return cls(config, preprocessor, tokenizer, encoder_only)

    @classmethod
    def load(
        cls,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        encoder_only: bool = False,
    ) -> "Reference":
        """Load a checkpoint, all of whose tensors must be known.

        It takes the memory of the weights in ``dtype``, with ``encoder_only`` without
        those of the language model.

        Raises:
            ValueError: Names the tensors that are missing or unknown, such as those
                of a quantised checkpoint.
        """
        model = cls.empty(folder, encoder_only)
        left_out = ("language_model.",) if encoder_only else ()
        missing = {*model.state_dict()} - {"mean", "std"}
        for file in sorted(folder.glob("*.safetensors")):
            tensors = {}
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    if name.endswith("summary_idxs") or name.startswith(left_out):
                        continue
                    tensor, own = opened.get_tensor(name), cls.own_name(name)
                    if own in ("mean", "std"):
                        tensors[own] = tensor.flatten().float()  # of float32 pixels
                    else:
                        tensors[own] = tensor.to(device, dtype)
            unknown = model.load_state_dict(tensors, strict=False, assign=True)[1]
            if unknown:
                raise ValueError(f"The reference does not know {sorted(unknown)[:5]}.")
            missing -= tensors.keys()
        if missing:
            raise ValueError(f"The checkpoint lacks {sorted(missing)[:5]}.")
        if language_model := model.language_model:
            # The frequencies are computed, not loaded, and always float32.
            rotary = LlamaRotaryEmbedding(language_model.config)
            language_model.model.rotary_emb = rotary
            # Answers have the requested length, so no token ends them.
            language_model.generation_config.eos_token_id = None
        return model.to(device).eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.tower.prefix.device

    @staticmethod
    def own_name(name: str) -> str:
        """The name in this module of a tensor of the checkpoint."""
        for prefix, own in {
            "vision_model.radio_model.input_conditioner.norm_": "",
            "vision_model.radio_model.model.patch_generator.cls_token.token": (
                "tower.prefix"
            ),
            "vision_model.radio_model.model.patch_generator.pos_embed": (
                "tower.positions"
            ),
            "vision_model.radio_model.model.patch_generator.": "tower.",
            "vision_model.radio_model.model.": "tower.",
        }.items():
            if name.startswith(prefix):
                return own + name.removeprefix(prefix)
        return name

    # Preprocessing

    def choose_grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows: the best score of covered area and aspect ratio."""
        grids = [
            (columns, rows)
            for columns, rows in itertools.product(
                range(1, self.max_tiles + 1), repeat=2
            )
            if columns * rows <= self.max_tiles
        ]
        grids.sort(key=lambda grid: grid[0] * grid[1])
        best, best_score = (1, 1), float("-inf")
        for columns, rows in grids:
            ratio, aspect = columns / rows, width / height
            area = columns * rows * self.tile_size**2
            score = min(area / (width * height), 0.6)
            score *= min(ratio / aspect, aspect / ratio)
            if score > best_score:
                best, best_score = (columns, rows), score
        return best

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """Tiles of an image row by row; if there are several, the thumbnail follows."""
        size = self.tile_size
        columns, rows = self.choose_grid(*image.size)
        whole = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
        tiles = [
            whole.crop((x * size, y * size, (x + 1) * size, (y + 1) * size))
            for y in range(rows)
            for x in range(columns)
        ]
        if self.use_thumbnail and len(tiles) > 1:
            tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
        return tiles

    def to_pixels(self, image: Image.Image) -> torch.Tensor:
        """uint8 tiles (n, 3, size, size) of an image."""
        return _stack(tile.convert("RGB") for tile in self.cut(image))

    def frames_to_pixels(self, frames: list[Image.Image]) -> torch.Tensor:
        """uint8 tiles (n, 3, size, size) of a video: each frame squashed to a tile."""
        size = self.tile_size, self.tile_size
        return _stack(frame.resize(size, Image.Resampling.BICUBIC) for frame in frames)

    def image_tokens(self, tiles: int) -> str:
        """What takes the place of an image or of a video."""
        side = self.tile_size // self.tower.patch_size // self.shuffle
        return f"<img>{'<image>' * tiles * side * side}</img>"

    def video_tokens(self, frames: int) -> str:
        return self.image_tokens(frames)

    def expand(self, prompt: str, tiles: list[int], frames: Iterable[int] = ()) -> str:
        """Replace each ``<image>``, and each ``<img></img>``, which is a video."""
        tiles, frames = [*tiles], [*frames]  # those that are left

        def tokens(placeholder: re.Match) -> str:
            if placeholder[0] == "<image>":
                return self.image_tokens(tiles.pop(0))
            return self.video_tokens(frames.pop(0))

        text = re.sub("<image>|<img></img>", tokens, prompt)
        assert not tiles and not frames
        return text

    # The model

    def condition(self, pixels: torch.Tensor) -> torch.Tensor:
        """From uint8 to normalised pixels in the model's dtype."""
        scaled = pixels.float() / 255
        scaled = (scaled - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)
        return scaled.to(self.tower.prefix.dtype)

    def pixel_shuffle(self, features: torch.Tensor) -> torch.Tensor:
        """Join each square of neighbouring patches: (n, p, c) to (n, p/4, 4c).

        Version 1 swaps the rows and columns of the result.
        """
        n, patches, _ = features.shape
        side, s = round(patches**0.5), self.shuffle
        x = features.reshape(n, side // s, s, side // s, s, -1)
        x = x.permute(0, 1, 3, 2, 4, 5)  # (n, row, column, inner row, inner column, c)
        if self.config.get("ps_version", "v1") == "v1":
            x = x.transpose(1, 2)
        return x.reshape(n, patches // s**2, -1)

    def connect(self, features: torch.Tensor) -> torch.Tensor:
        return self.mlp1(self.pixel_shuffle(features))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """From uint8 tiles to embeddings (n, tokens, width of the language model)."""
        return self.connect(self.tower(self.condition(pixels)))

    def embed(
        self,
        prompt: str,
        images: list[Image.Image],
        videos: Sequence[list[Image.Image]] = (),
    ) -> tuple[list[int], torch.Tensor]:
        """Token ids of the expanded prompt, and its embeddings (1, tokens, width)."""
        pixels = [self.to_pixels(image) for image in images]
        frames = [self.frames_to_pixels(video) for video in videos]
        text = self.expand(prompt, [*map(len, pixels)], [*map(len, frames)])
        ids = self.tokenizer.encode(text)
        tokens = torch.tensor([ids], device=self.device)
        embeds = self.language_model.get_input_embeddings()(tokens).clone()
        places = re.findall("<image>|<img></img>", prompt)
        ordered = [
            pixels.pop(0) if place == "<image>" else frames.pop(0) for place in places
        ]
        if ordered:
            (image_id,) = self.tokenizer.encode("<image>", add_special_tokens=False)
            features = self.encode(torch.cat(ordered).to(self.device)).flatten(0, 1)
            embeds[tokens == image_id] = features
        return ids, embeds

    def answer(
        self,
        prompt: str,
        images: list[Image.Image],
        max_tokens: int,
        videos: Sequence[list[Image.Image]] = (),
    ) -> tuple[list[int], list[int], torch.Tensor]:
        """Decode greedily, without a stop token.

        Args:
            prompt: With ``<image>`` for each image and ``<img></img>`` for each video.
            images: RGB.
            max_tokens: Length of the answer.
            videos: The frames of each, RGB, of which all are used.

        Returns:
            Token ids of the prompt, token ids of the answer, and the
            log-probabilities over the vocabulary at the answer's first token.
        """
        ids, embeds = self.embed(prompt, images, videos)
        tokens, logits = self.decode(embeds, max_tokens)
        return ids, tokens, logits[0].log_softmax(-1)

    def decode(
        self, embeds: torch.Tensor, max_tokens: int
    ) -> tuple[list[int], torch.Tensor]:
        """Token ids that follow the embeddings, and logits of each (tokens, vocab)."""
        output = self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], device=self.device),
            max_new_tokens=max_tokens,
            pad_token_id=0,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return output.sequences[0].tolist(), torch.cat(output.logits).float().cpu()


def _stack(tiles: Iterable[Image.Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(tile) for tile in tiles])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
