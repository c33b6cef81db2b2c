"""Rehearse a GPU in a process of its own, and write what happened as JSON.

    python -m support.cuda_rehearsal CHECKPOINT OUT

Needs ``pretended_gpu`` on PYTHONPATH. The checkpoint has the published sizes. No
weights are read.
"""

import contextlib
import json
import logging
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.distributed import get_tp_group
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.utils import group_and_batch_mm_kwargs
from vllm.platforms import current_platform
from vllm.utils.torch_utils import async_tensor_h2d, set_default_torch_dtype
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

from support.device_trace import DeviceTrace, traced
from support.loading import start_ranks
from support.quantised import AWQ, GPTQ, fp8_config, int8_config, nvfp4_config
from vllm_nemotron_vl.config import nemotron_vl_names as names
from vllm_nemotron_vl.config.nemotron_vl_video import VIDEO_PLACEHOLDER

DEVICE = torch.device("cuda")
TILE = 512
VIDEO = {"architectures": [names.VIDEO_ARCHITECTURE]}


def variant(checkpoint: Path, quantisation: dict[str, Any] | None = None) -> Path:
    """The checkpoint's small files, with one layer of the language model."""
    folder = Path(tempfile.mkdtemp()) / "variant"
    folder.mkdir()
    for file in checkpoint.glob("*.json"):
        shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["num_hidden_layers"] = 1
    config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def configure(folder: Path, **options: Any) -> VllmConfig:
    options = {"max_model_len": 8192, "load_format": "dummy", **options}
    return EngineArgs(model=str(folder), **options).create_engine_config()


@contextlib.contextmanager
def built(config: VllmConfig, blocks: int = 1) -> Iterator[torch.nn.Module]:
    """The first rank's model, without weights."""
    config.model_config.hf_config.vision_config.num_hidden_layers = blocks
    # vLLM's compiler needs compiled operators already when it is imported.
    config.compilation_config.mode = CompilationMode.NONE
    start_ranks(config)
    ranks = config.parallel_config.tensor_parallel_size
    with (
        set_current_vllm_config(config),
        mock.patch.object(get_tp_group(), "world_size", ranks),
        torch.inference_mode(),
    ):
        with traced(), DEVICE, set_default_torch_dtype(config.model_config.dtype):
            model = initialize_model(vllm_config=config)
        yield model.eval()


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


CACHE = {"additional_config": {"nemotron_vl": {"tile_cache_mb": 16}}}  # 7 tiles
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


# Starts of engines

H100, A100, T4, B200 = (9, 0), (8, 0), (7, 5), (10, 0)


@dataclass
class Engine:
    """An engine's options, and the GPU."""

    options: dict[str, Any]
    capability: tuple[int, int] = H100
    quantisation: dict[str, Any] | None = None  # of the checkpoint


TP8 = {"tensor_parallel_size": 8}
DATA = {"mm_encoder_tp_mode": "data"}
GRAPHS = {"compilation_config": {"cudagraph_mm_encoder": True}}
KEPT = ["vision_model*", "mlp1*", "language_model.lm_head"]
ENGINES = {
    "": Engine({}),
    "A100": Engine({}, A100),
    "T4": Engine({}, T4),
    "B200": Engine({}, B200),
    "--dtype float16": Engine({"dtype": "float16"}),
    "--dtype float32": Engine({"dtype": "float32"}),
    "-tp 8": Engine(TP8),
    "-tp 8 --mm-encoder-tp-mode data": Engine(TP8 | DATA),
    "-tp 3": Engine({"tensor_parallel_size": 3}),
    "-pp 2": Engine({"pipeline_parallel_size": 2}),
    "--quantization fp8_per_tensor": Engine({"quantization": "fp8_per_tensor"}),
    "FP8": Engine({}, H100, fp8_config(KEPT)),
    "FP8, encoder too": Engine({}, H100, fp8_config(["lm_head"])),
    "NVFP4": Engine({}, B200, nvfp4_config(KEPT)),
    "NVFP4 -tp 8": Engine(TP8, B200, nvfp4_config(KEPT)),
    "NVFP4 on H100": Engine({}, H100, nvfp4_config(KEPT)),
    "INT8": Engine({}, H100, int8_config()),
    "AWQ": Engine({}, H100, AWQ),
    "GPTQ": Engine({}, H100, GPTQ),
    "--kv-cache-dtype fp8": Engine({"kv_cache_dtype": "fp8"}),
    **{
        f"--mm-encoder-attn-backend {name}": Engine({"mm_encoder_attn_backend": name})
        for name in ("FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA", "FLASHINFER")
    },
    "FLASH_ATTN in float32": Engine(
        {"mm_encoder_attn_backend": "FLASH_ATTN", "dtype": "float32"}
    ),
    "--mm-encoder-attn-dtype fp8": Engine({"mm_encoder_attn_dtype": "fp8"}, B200),
    "FLASHINFER in FP8": Engine(
        {"mm_encoder_attn_backend": "FLASHINFER", "mm_encoder_attn_dtype": "fp8"}, B200
    ),
    "graphs": Engine(GRAPHS),
    "graphs -tp 8": Engine(GRAPHS | TP8),
    "graphs -tp 8 --mm-encoder-tp-mode data": Engine(GRAPHS | TP8 | DATA),
    # Its configuration alone: `built` compiles nothing.
    "compile_mm_encoder": Engine({"compilation_config": {"compile_mm_encoder": True}}),
    "--enable-sleep-mode": Engine({"enable_sleep_mode": True}),
    "--cpu-offload-gb 1": Engine({"cpu_offload_gb": 1}),
    "--enable-lora": Engine({"enable_lora": True}),
    "--enable-tower-connector-lora": Engine(
        {"enable_lora": True, "enable_tower_connector_lora": True}
    ),
    "--enable-mm-embeds": Engine({"enable_mm_embeds": True}),
    "tile cache": Engine(CACHE),
    "videos": Engine({"hf_overrides": VIDEO}),
    "no images": Engine({"limit_mm_per_prompt": {"image": 0}}),
}


def start(checkpoint: Path, engine: Engine) -> dict[str, Any]:
    """How far the start of an engine gets, and what this package says in the log."""
    type(current_platform).capability = engine.capability
    found: dict[str, Any] = {"configured": False, "built": False, "said": []}
    listener = Listener(found["said"])
    logging.getLogger("vllm").addHandler(listener)
    try:
        folder = variant(checkpoint, engine.quantisation)
        config = configure(folder, **engine.options)
        found["configured"] = True
        with built(config) as model:
            found["built"] = True
            attention = model.vision_model.model.encoder.layers[0].attn.attn
            attention = getattr(attention, "attention", attention)  # of FlashInfer
            found["attention"] = attention.attn_backend.name
    except Exception:
        found["error"] = traceback.format_exc()
    finally:
        logging.getLogger("vllm").removeHandler(listener)
        type(current_platform).capability = H100
    return found


class Listener(logging.Handler):
    """Collects the messages of this package."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        if Path(record.pathname).is_relative_to(Path(names.__file__).parents[1]):
            self.said.append(record.getMessage())


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
