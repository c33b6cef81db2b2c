"""Rehearse a GPU in a process of its own, and write what happened as JSON.

    python -m support.cuda_rehearsal CHECKPOINT OUT

Needs ``pretended_gpu`` on PYTHONPATH. The checkpoint has the published sizes. No
weights are read.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from vllm.config import VllmConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.utils import group_and_batch_mm_kwargs
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

from support.cuda_engines import (
    CACHE,
    DEVICE,
    ENGINES,
    VIDEO,
    built,
    configure,
    start,
    variant,
)
from support.device_trace import DeviceTrace, traced
from vllm_nemotron_vl.config.nemotron_vl_video import VIDEO_PLACEHOLDER

TILE = 512

# Forwards


def noise() -> Image.Image:
    """A page of 12 tiles that all differ; a thumbnail comes on top."""
    return Image.effect_noise((3 * TILE, 4 * TILE), 100).convert("RGB")


def blank() -> Image.Image:
    """A page of eleven equal tiles, another tile, and a thumbnail."""
    page = Image.new("RGB", (3 * TILE, 4 * TILE), "white")
    page.putpixel((0, 0), (0, 0, 0))
    return page


def clip() -> Any:
    """Four frames, two of them equal."""
    frames = np.zeros((4, TILE, TILE, 3), np.uint8)
    frames[1], frames[2] = 1, 2
    return frames


@dataclass
class Forward:
    """What Model Runner V2 does in one step with the images of some requests."""

    media: dict[str, list] = field(default_factory=lambda: {"image": [noise()]})
    options: dict[str, Any] = field(default_factory=dict)
    earlier: dict[str, list] | None = None  # encoded in a step before
    blocks: int = 1

    def trace(self, folder: Path) -> DeviceTrace:
        config = configure(folder, **self.options)
        with built(config, self.blocks) as model:
            with traced():
                runner = EncoderRunner(
                    model, 0, 4096, SimpleNamespace(), config.model_config.dtype, DEVICE
                )
                if self.earlier:
                    runner.execute_mm_encoder(process(config, self.earlier))
            items = process(config, self.media)
            with traced() as trace:
                runner.execute_mm_encoder(items)
        return trace


def process(config: VllmConfig, media: dict[str, list]) -> list[tuple[str, Any]]:
    """The items that the API server sends to the engine."""
    processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
    (modality,) = media
    items = processor.info.parse_mm_data(media)
    text = {"image": "<image>", "video": VIDEO_PLACEHOLDER}[modality]
    text *= len(media[modality])
    found = processor(text, items, hf_processor_mm_kwargs={})["mm_kwargs"]
    return [(modality, item) for item in found[modality]]


FORWARDS = {
    "page": Forward(blocks=32),
    "equal tiles": Forward({"image": [blank()]}),
    "two pages": Forward({"image": [noise(), noise()]}),
    "tile cache": Forward({"image": [noise(), blank()]}, CACHE, {"image": [blank()]}),
    "all in the cache": Forward({"image": [blank()]}, CACHE, {"image": [blank()]}),
    "float pixels": Forward(options={"mm_device_do_normalize": False}),
    "float16": Forward(options={"dtype": "float16"}),
    "float32": Forward(options={"dtype": "float32"}),
    "video": Forward({"video": [clip()]}, {"hf_overrides": VIDEO}),
    "embeddings": Forward(
        {"image": [torch.ones(256, 4096)]}, {"enable_mm_embeds": True}
    ),
    **{
        name: Forward(options={"mm_encoder_attn_backend": name})
        for name in ("TRITON_ATTN", "TORCH_SDPA", "FLASHINFER")
    },
    "tensor parallel": Forward(options={"tensor_parallel_size": 8}, blocks=32),
    "data parallel": Forward(
        options={"tensor_parallel_size": 8, "mm_encoder_tp_mode": "data"}, blocks=32
    ),
}


def graph(folder: Path) -> DeviceTrace:
    """What a CUDA graph of the encoder records."""
    with built(configure(folder)) as model:
        with traced():
            shape = (13, 3, TILE, TILE)
            pixels = torch.empty(shape, dtype=torch.uint8, device=DEVICE)
        with traced(capturing=True) as trace:
            model.encoder_cudagraph_forward({"pixel_values_flat": pixels})
    return trace


def beside_graphs(folder: Path) -> DeviceTrace:
    """Images that fit no graph."""
    config = configure(folder, **CACHE)
    with built(config) as model:
        items = process(config, {"image": [noise(), blank()]})
        with traced() as trace:
            ((_, _, batch),) = group_and_batch_mm_kwargs(
                items, device=DEVICE, pin_memory=True
            )
            chosen = model.select_encoder_cudagraph_items(batch, [1, 0])
            model.encoder_eager_forward(chosen)
    return trace


def prompt(folder: Path) -> DeviceTrace:
    """The input of the language model, with the embeddings of an image."""
    with built(configure(folder)) as model:
        with traced():
            embeddings = torch.ones(256, 4096, dtype=torch.bfloat16, device=DEVICE)
            ids = torch.ones(300, dtype=torch.long, device=DEVICE)
        with traced() as trace:
            places = torch.zeros(300, dtype=torch.bool)
            places[20:276] = True
            model.embed_input_ids(ids, [embeddings], is_multimodal=places)
    return trace


# What makes the host wait, and what does not


def waiting(values: torch.Tensor, pixels: torch.Tensor) -> dict[str, Callable]:
    """Calls that wait, with a tensor on the device and one on the CPU."""
    return {
        "list as index": lambda: values[[0, 1]],
        "list as target": lambda: values.__setitem__([0, 1], 0.0),
        "index on the CPU": lambda: values[torch.tensor([0, 1])],
        "mask": lambda: values[values > 0],
        "item": lambda: values[0].item(),
        "list of values": lambda: values.tolist(),
        "distinct values": lambda: values.unique(),
        "to the CPU": lambda: values.cpu(),
        "tensor of a list": lambda: torch.tensor([1.0], device=DEVICE),
        "pageable": lambda: pixels.to(DEVICE),
        "pageable, not blocking": lambda: pixels.to(DEVICE, non_blocking=True),
        "pinned, blocking": lambda: pixels.pin_memory().to(DEVICE),
        "into pageable memory": lambda: pixels.copy_(values, non_blocking=True),
        "condition": lambda: bool((values > 0).all()),
    }


def not_waiting(values: torch.Tensor, pixels: torch.Tensor) -> dict[str, Callable]:
    """Calls that do not wait."""
    return {
        "pinned": lambda: pixels.pin_memory().to(DEVICE, non_blocking=True),
        "pinned list": lambda: async_tensor_h2d([1, 2], device=DEVICE),
        "index on the device": lambda: values[values.long()],
        "row": lambda: values[1],
        "number": lambda: values.mul_(2).fill_(1),
    }


def alone(calls: Callable[..., dict[str, Callable]]) -> dict[str, list[str]]:
    """What each call waits for."""
    found = {}
    for name in calls(torch.empty(0), torch.empty(0)):
        with traced() as trace:
            values, pixels = torch.ones(4, device=DEVICE), torch.ones(4)
            with contextlib.suppress(
                DynamicOutputShapeException, DataDependentOutputException
            ):
                calls(values, pixels)[name]()
        found[name] = trace.waits
    return found


def main(checkpoint: Path, out: Path) -> None:
    tempfile.tempdir = str(out.parent)
    folder = variant(checkpoint)
    traces = {name: forward.trace(folder) for name, forward in FORWARDS.items()}
    traces |= {
        "graph": graph(folder),
        "beside graphs": beside_graphs(folder),
        "prompt": prompt(folder),
    }
    found = {
        "forwards": {
            name: {
                "waits": trace.waits,
                "kernels": trace.kernels,
                "collectives": trace.collectives,
            }
            for name, trace in traces.items()
        },
        "waiting": alone(waiting),
        "not waiting": alone(not_waiting),
        "engines": {
            name: start(checkpoint, engine) for name, engine in ENGINES.items()
        },
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
