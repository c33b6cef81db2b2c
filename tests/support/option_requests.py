"""What the matrix of options asks an engine, and the reference's answers to it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from lora.train_adapters import train
from support.clips import encoded, numbers
from vllm_nemotron_vl.assets.nemotron_vl import draw_text
from vllm_nemotron_vl.entrypoints.nemotron_vl.reference import Reference
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import EMBEDS, NUM_TILES

TOKENS = 10  # of an answer
ADAPTERS = ("language", "tower", "all")
TOWER_LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def chat(images: int, videos: int = 0) -> str:
    """A question in the checkpoint's chat format, as a server writes it."""
    media = "<image>\n" * images + "<img></img>\n" * videos
    what = "both" if images + videos == 2 else "the text"
    return (
        f"<|start_header_id|>user<|end_header_id|>\n\n{media}Read {what}.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@dataclass
class Ask:
    """A prompt for ``LLM.generate``, and what the reference must see for it."""

    name: str
    text: str
    pictures: Sequence[Image.Image] = ()
    videos: Sequence[list[Image.Image]] = ()
    data: dict[str, Any] | None = None  # if it differs from the pictures
    uuids: dict[str, list[str]] | None = None

    @property
    def prompt(self) -> dict[str, Any]:
        data = self.data
        if data is None:
            data = {}
            if self.pictures:
                data["image"] = list(self.pictures)
            if self.videos:
                data["video"] = [encoded(frames) for frames in self.videos]
        prompt: dict[str, Any] = {"prompt": self.text, "multi_modal_data": data}
        if self.uuids:
            prompt["multi_modal_uuids"] = self.uuids
        return prompt


class Int8Linear(nn.Module):
    """W8A8 in plain PyTorch: a scale for each output, and for each token's inputs.

    `merged` is the layer with an adapter, which vLLM does not quantise.
    """

    def __init__(self, linear: nn.Linear, merged: nn.Linear) -> None:
        super().__init__()
        self.weight, self.scale = rounded(linear.weight)
        self.adapter = merged.weight - linear.weight
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels, scale = rounded(x)
        product = (levels @ self.weight.T) * scale * self.scale.T
        return product + x @ self.adapter.T + self.bias


def rounded(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127, as floats, and the scale of each row."""
    scale = values.abs().amax(-1, keepdim=True) / 127
    return (values / scale).round(), scale


def quantise_tower(tiny: Path, folder: Path) -> Path:
    """Write the embedded checkpoint with 8-bit linear layers in its tower."""
    shutil.copytree(tiny, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in [n for n in tensors if n.endswith(tuple(f"{x}.weight" for x in TOWER_LINEAR))]:
        levels, scale = rounded(tensors[name].float())
        tensors[name] = levels.to(torch.int8)
        tensors[name.replace(".weight", ".weight_scale")] = scale
    save_file(tensors, file, {"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel"},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": scheme},
        "ignore": ["re:language_model.*", "re:mlp1.*"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass
class World:
    """Checkpoints, adapters, a store of embeddings, and all that is asked."""

    tiny: Path
    folder: Path
    _references: dict = field(default_factory=dict)

    @cached_property
    def quantised(self) -> Path:
        return quantise_tower(self.tiny, self.folder / "quantised")

    @cached_property
    def merged(self) -> dict[str, Reference]:
        """The reference with each adapter merged into its weights."""
        return {n: train(self.tiny, n, self.folder / n) for n in ADAPTERS}

    def reference(self, adapter: str | None = None, int8: bool = False) -> Reference:
        key = adapter, int8
        if key not in self._references:
            plain = Reference.load(self.tiny)
            found = self.merged[adapter] if adapter else plain
            if int8:
                found = _with_int8_tower(plain, found)
            self._references[key] = found
        return self._references[key]

    def features(self, pixels: torch.Tensor, **kind) -> torch.Tensor:
        """Embeddings of one image or video, (tokens, width)."""
        return self.reference(**kind).encode(pixels).flatten(0, 1).detach()

    def answer(self, ask: Ask, **kind) -> list[int]:
        return self.reference(**kind).answer(
            ask.text, list(ask.pictures), TOKENS, ask.videos
        )[1]


def _with_int8_tower(plain: Reference, merged: Reference) -> Reference:
    import copy

    result = copy.deepcopy(merged)
    for block, first, last in zip(
        result.tower.blocks, plain.tower.blocks, merged.tower.blocks, strict=True
    ):
        for name in TOWER_LINEAR:
            layer = Int8Linear(first.get_submodule(name), last.get_submodule(name))
            block.set_submodule(name, layer)
    return result


PICTURES = {text: draw_text(text) for text in ("640-27", "118-05", "33.7", "9")}


def corner(picture: Image.Image) -> Image.Image:
    """A copy that shares all tiles but one and the thumbnail."""
    copy = picture.copy()
    copy.paste("red", (0, 0, 20, 20))
    return copy


def pictures() -> list[Ask]:
    a, b, c = (PICTURES[text] for text in ("640-27", "118-05", "33.7"))
    return [
        Ask("one", chat(1), [a]),
        Ask("two of different sizes", chat(2), [c, b]),
        Ask("none", chat(0)),
        Ask("one that shares tiles", chat(1), [corner(a)]),
        Ask("the other way round", chat(2), [b, c]),
    ]


def embeddings(world: World) -> list[Ask]:
    b, c = PICTURES["118-05"], PICTURES["33.7"]
    plain = world.reference()
    given = [world.features(plain.to_pixels(picture)) for picture in (b, c)]
    return [
        Ask("embeddings", chat(1), [b], data={"image": {EMBEDS: given[:1]}}),
        Ask("two embeddings", chat(2), [b, c], data={"image": {EMBEDS: given}}),
        Ask("a picture beside them", chat(1), [PICTURES["9"]]),
    ]


def videos() -> list[Ask]:
    frames = numbers("640-27", "12")
    return [
        Ask("video", chat(0, 1), videos=[frames]),
        Ask("picture and video", chat(1, 1), [PICTURES["118-05"]], [numbers("55")]),
    ]


def stored(world: World, store: Path, video: bool, adapters=(None,)) -> list[Ask]:
    """Images whose embeddings are in the store: those of another picture, to tell."""
    sent, seen = PICTURES["640-27"], PICTURES["118-05"]
    plain = world.reference()
    tiles = plain.to_pixels(seen)
    for adapter in adapters:
        name = f"{adapter}:seen" if adapter else "seen"
        (store / name).mkdir(parents=True)
        save_file(
            {"ec_cache": world.features(tiles)},
            store / name / "encoder_cache.safetensors",
        )
    uuids = {"image": ["seen"]}
    count = {NUM_TILES: torch.tensor([len(tiles)])}
    return [
        Ask("stored", chat(1), [seen], data={"image": [sent]}, uuids=uuids),
        Ask("stored, by name", chat(1), [seen], data={"image": count}, uuids=uuids),
        Ask("not stored", chat(1), [PICTURES["9"]]),
    ]
