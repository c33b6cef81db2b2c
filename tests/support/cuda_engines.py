"""Engines on a pretended GPU: how far their start gets, and what they say in the log.

Needs ``pretended_gpu`` on PYTHONPATH.
"""

import contextlib
import json
import logging
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from vllm.config import CompilationMode, VllmConfig, set_current_vllm_config
from vllm.distributed import get_tp_group
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.attention import selector

from support.device_trace import traced
from support.loading import start_ranks
from support.quantised import AWQ, FP8, GPTQ, fp8_config, int8_config, nvfp4_config
from vllm_nemotron_vl.config import nemotron_vl_names as names

DEVICE = torch.device("cuda")
VIDEO = {"architectures": [names.VIDEO_ARCHITECTURE]}
CACHE = {"additional_config": {"nemotron_vl": {"tile_cache_mb": 16}}}  # 7 tiles


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


H100, L4, A100, T4 = (9, 0), (8, 9), (8, 0), (7, 5)
B200, SPARK = (10, 0), (12, 1)


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
    "FP8 by compressed-tensors": Engine({}, H100, FP8),
    "FP8 on L4": Engine({}, L4, FP8),
    "FP8 on A100": Engine({}, A100, FP8),
    "FP8 on a Spark": Engine({}, SPARK, FP8),
    "FP8, encoder too": Engine({}, H100, fp8_config(["lm_head"])),
    "NVFP4": Engine({}, B200, nvfp4_config(KEPT)),
    "NVFP4 -tp 8": Engine(TP8, B200, nvfp4_config(KEPT)),
    "NVFP4 on a Spark": Engine({}, SPARK, nvfp4_config(KEPT)),
    "NVFP4 on H100": Engine({}, H100, nvfp4_config(KEPT)),
    "NVFP4 on L4": Engine({}, L4, nvfp4_config(KEPT)),
    "NVFP4 on A100": Engine({"kv_cache_dtype": "bfloat16"}, A100, nvfp4_config(KEPT)),
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
    selector._cached_get_attn_backend.cache_clear()  # it knows one device
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
            layer = model.language_model.model.layers[0].mlp.down_proj
            found["kernel"] = type(linear_kernel(layer)).__name__
    except Exception:
        found["error"] = traceback.format_exc()
    finally:
        logging.getLogger("vllm").removeHandler(listener)
        type(current_platform).capability = H100
    return found


def linear_kernel(layer: torch.nn.Module) -> Any:
    """vLLM's kernel for a quantised layer, if its method names one."""
    method = vars(getattr(layer, "scheme", layer.quant_method))
    names = ("kernel", "fp8_linear", "linear_kernel")
    return next((method[name] for name in names if name in method), None)


class Listener(logging.Handler):
    """Collects the messages of this package."""

    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        if Path(record.pathname).is_relative_to(Path(names.__file__).parents[1]):
            self.said.append(record.getMessage())
