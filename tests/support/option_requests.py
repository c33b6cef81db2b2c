"""What the matrix of options asks engines, and what the reference says to it."""

import copy
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from vllm.lora.request import LoRARequest

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.verify.reference import Reference
from support.clips import encoded, numbers
from support.quantised import int8_config
from support.train_adapters import TOWER, train
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import EMBEDS, NUM_TILES

TOKENS = 10  # of an answer
ADAPTERS: dict[str, dict[str, Any]] = {
    # Its answers have the text in the image, so bfloat16's errors hide no other image.
    "language": dict(answer="1:{}", rate=2e-3, steps=40),
    "tower": {},
    "all": {},
}
IMAGES = {text: draw_text(text) for text in ("640-27", "118-05", "33.7", *"9417")}


def chat(images: int, videos: int = 0) -> str:
    """A question in the checkpoint's chat format, as a server writes it."""
    media = "<image>\n" * images + "<img></img>\n" * videos
    what = "both" if images + videos == 2 else "the text"
    return (
        f"<|start_header_id|>user<|end_header_id|>\n\n{media}Read {what}.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@dataclass(frozen=True)
class Ask:
    """A prompt for ``LLM.generate``.

    Args:
        name: For messages.
        images: What the reference sees.
        videos: The same: the frames of each.
        data: What the engine gets, if it is something else.
        uuids: Names of the images or videos.
    """

    name: str
    images: Sequence[Image.Image] = ()
    videos: Sequence[list[Image.Image]] = ()
    data: dict[str, Any] | None = None
    uuids: dict[str, list[str]] | None = None

    @property
    def text(self) -> str:
        return chat(len(self.images), len(self.videos))

    @property
    def prompt(self) -> dict[str, Any]:
        data: dict[str, Any] = self.data or {
            "image": [*self.images],
            "video": [encoded(frames) for frames in self.videos],
        }
        prompt: dict[str, Any] = {
            "prompt": self.text,
            "multi_modal_data": {kind: items for kind, items in data.items() if items},
        }
        return prompt | ({"multi_modal_uuids": self.uuids} if self.uuids else {})


# Quantisation


def rounded(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127, as floats, and the scale of each row."""
    scale = values.abs().amax(-1, keepdim=True) / 127
    return (values / scale).round(), scale


class Int8Linear(nn.Module):
    """8-bit weights and activations in plain PyTorch: a scale for each row of both.

    Args:
        plain: The layer whose weights are rounded.
        merged: The same with an adapter, which vLLM computes in full precision.
    """

    def __init__(self, plain: nn.Linear, merged: nn.Linear) -> None:
        super().__init__()
        self.levels, self.scale = rounded(plain.weight)
        self.adapter = merged.weight - plain.weight
        self.bias = plain.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels, scale = rounded(x)
        product = (levels @ self.levels.T) * scale * self.scale.T
        return product + x @ self.adapter.T + self.bias


def with_int8_tower(plain: Reference, merged: Reference) -> Reference:
    result = copy.deepcopy(merged)
    for number, block in enumerate(result.tower.blocks):
        for name in TOWER:
            layers = (
                reference.tower.blocks[number].get_submodule(name)
                for reference in (plain, merged)
            )
            block.set_submodule(name, Int8Linear(*layers))
    return result


def write_int8_tower(tiny: Path, folder: Path) -> Path:
    """The embedded checkpoint with the tower's linear layers in 8 bits."""
    shutil.copytree(tiny, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for name in [*tensors]:
        if name.endswith(tuple(f".{layer}.weight" for layer in TOWER)):
            levels, scale = rounded(tensors[name].float())
            tensors[name] = levels.to(torch.int8)
            tensors[f"{name}_scale"] = scale
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    ignore = ["re:language_model.*", "re:mlp1.*"]
    config["quantization_config"] = int8_config(ignore=ignore)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# The reference


@dataclass
class Expected:
    """The reference with and without adapters, and with a quantised tower."""

    tiny: Path
    folder: Path
    _references: dict[tuple, Reference] = field(default_factory=dict)

    @cached_property
    def int8_checkpoint(self) -> Path:
        return write_int8_tower(self.tiny, self.folder / "int8")

    def adapter(self, name: str) -> LoRARequest:
        self.reference(name)  # trains it
        return LoRARequest(name, 1 + [*ADAPTERS].index(name), str(self.folder / name))

    def reference(self, adapter: str | None = None, int8: bool = False) -> Reference:
        """The reference, an adapter merged into its weights."""
        key = adapter, int8
        if key not in self._references:
            if int8:
                plain, merged = self.reference(), self.reference(adapter)
                found = with_int8_tower(plain, merged)
            elif adapter:
                folder = self.folder / adapter
                found = train(self.tiny, adapter, folder, **ADAPTERS[adapter])
            else:
                found = Reference.load(self.tiny)
            self._references[key] = found
        return self._references[key]

    @torch.no_grad()
    def features(
        self, ask: Ask, adapter: str | None = None, int8: bool = False
    ) -> list[torch.Tensor]:
        """Embeddings of each image and of each video, (tokens, width)."""
        reference = self.reference(adapter, int8)
        items = [reference.to_pixels(image) for image in ask.images]
        items += [reference.frames_to_pixels(frames) for frames in ask.videos]
        return [reference.encode(pixels).flatten(0, 1) for pixels in items]

    def answer(
        self, ask: Ask, adapter: str | None = None, int8: bool = False
    ) -> tuple[list[int], torch.Tensor]:
        """Tokens of the answer, and log-probabilities of all tokens for the first.

        These differ between images where the tokens do not: an adapter that was
        trained on few answers gives them to nearly all images.
        """
        reference = self.reference(adapter, int8)
        _, tokens, first = reference.answer(ask.text, [*ask.images], TOKENS, ask.videos)
        return tokens, first

    def up_to_the_end(self, tokens: Iterable[int]) -> list[int]:
        """An answer without what follows its end token."""
        tokens = [*tokens]
        end = self.reference().tokenizer.convert_tokens_to_ids("<|eot_id|>")
        return tokens[: tokens.index(end)] if end in tokens else tokens


# Requests


def images() -> list[Ask]:
    """One image, two of different sizes, none, and images with tiles of others.

    Two of the small ones fit into one step.
    """
    one, other, large = (IMAGES[text] for text in ("640-27", "118-05", "33.7"))
    marked = one.copy()  # one tile and the thumbnail are different
    marked.paste("red", (0, 0, 20, 20))
    return [
        Ask("one", [one]),
        *(Ask(f"small {text}", [IMAGES[text]]) for text in "9417"),
        Ask("two of different sizes", [large, other]),
        Ask("none"),
        Ask("one that shares tiles", [marked]),
        Ask("two in another order", [other, large]),
    ]


def alike() -> list[Ask]:
    """Images of 11 tiles, which fit no graph; eight tiles are those of "33.7".

    The others have another digit, so a wrong tile gives another answer.
    """
    return [Ask(text, [draw_text(text)]) for text in ("83.7", "53.7")]


def embeddings(expected: Expected, **kind) -> list[Ask]:
    """Embeddings that come with the request, beside an image that does not."""
    asks = [
        Ask("embeddings", [IMAGES["118-05"]]),
        Ask("two embeddings", [IMAGES["118-05"], IMAGES["33.7"]]),
    ]
    given = [expected.features(ask, **kind) for ask in asks]
    return [
        *(
            replace(ask, data={"image": {EMBEDS: features}})
            for ask, features in zip(asks, given, strict=True)
        ),
        Ask("an image beside them", [IMAGES["9"]]),
    ]


def videos() -> list[Ask]:
    return [
        Ask("video", videos=[numbers("640-27", "12")]),
        Ask("image and video", [IMAGES["118-05"]], [numbers("55")]),
    ]


def stored(
    expected: Expected, store: Path, *, adapters: Iterable[str | None], **kind
) -> list[Ask]:
    """Requests whose embeddings another engine has stored.

    They are those of another image than is sent, so the answer tells which were used.
    """
    sent, seen = IMAGES["640-27"], IMAGES["118-05"]
    ask = Ask("stored", [seen], data={"image": [sent]}, uuids={"image": ["seen"]})
    for adapter in adapters:
        (features,) = expected.features(ask, adapter, **kind)
        publish(features, store / (f"{adapter}:seen" if adapter else "seen"))
    tiles = len(expected.reference().to_pixels(seen))
    return [
        ask,
        replace(ask, name="name", data={"image": {NUM_TILES: torch.tensor([tiles])}}),
        Ask("not stored", [IMAGES["9"]]),
    ]


def stored_video(expected: Expected, store: Path, **kind) -> list[Ask]:
    seen = numbers("55", "7")
    sent = {"video": [encoded(numbers("640", "27"))]}
    ask = Ask("stored video", videos=[seen], data=sent, uuids={"video": ["clip"]})
    (features,) = expected.features(ask, **kind)
    publish(features, store / "video-clip")
    return [ask]


def publish(features: torch.Tensor, folder: Path) -> None:
    """Store embeddings as vLLM's `ECExampleConnector` does."""
    folder.mkdir(parents=True)
    save_file({"ec_cache": features.contiguous()}, folder / "encoder_cache.safetensors")
