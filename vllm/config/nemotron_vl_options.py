# SPDX-License-Identifier: Apache-2.0
"""Options of vLLM that do not work together with this model, or need a default."""

import math
from collections.abc import Iterable

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from .nemotron_vl_names import RETRIEVAL_MODEL_TYPES, VIDEO_ARCHITECTURE

# Numbers of tiles for which a graph is captured: images have 1 tile, or at least 3
# with their thumbnail. Above 9, numbers grow by this factor. Batches of small images
# have graphs up to the last number.
_GRAPH_TILES = (1, 3, 5, 7, 9)
_GROWTH = 1.4
_BATCH_TILES = 16

# Kernels of attention that have no float32, and those that have FP8.
_OF_16_BITS = (
    AttentionBackendEnum.FLASH_ATTN,
    AttentionBackendEnum.FLASHINFER,
    AttentionBackendEnum.ROCM_AITER_FA,
)
_OF_FP8 = (AttentionBackendEnum.FLASHINFER, AttentionBackendEnum.ROCM_AITER_FA)


def encoder_graphs(config: VllmConfig) -> bool:
    """Whether vLLM captures CUDA graphs of the encoder."""
    eager = config.model_config.enforce_eager
    return config.compilation_config.cudagraph_mm_encoder and not eager


def encoder_data_parallel(config: VllmConfig) -> bool:
    """Whether several ranks share out the tiles."""
    ranks = config.parallel_config.tensor_parallel_size
    mode = config.model_config.get_multimodal_config().mm_encoder_tp_mode
    return mode == "data" and ranks > 1


def encoder_adapters(config: VllmConfig) -> bool:
    """Whether LoRA adapters apply to the tower and the connector."""
    lora = config.lora_config
    return lora is not None and lora.enable_tower_connector_lora


def _reads_videos(config: VllmConfig) -> bool:
    options = config.model_config.get_multimodal_config()
    return (
        VIDEO_ARCHITECTURE in config.model_config.architectures
        and options.get_limit_per_prompt("video") > 0
    )


def has_encoder(config: VllmConfig) -> bool:
    """Whether images or videos are read; otherwise vLLM leaves the tower out."""
    options = config.model_config.get_multimodal_config()
    return bool(options.get_limit_per_prompt("image")) or _reads_videos(config)


def check_adapters(config: VllmConfig) -> None:
    """Refuse adapters on the encoder where vLLM would apply them to other tiles.

    vLLM assigns adapters to the tiles of all images and videos of a step, in the order
    in which it schedules them.

    Raises:
        ValueError: Names the option, and what to leave out.
    """
    if not encoder_adapters(config):
        return
    options = config.model_config.get_multimodal_config()
    refused = {
        "--mm-encoder-tp-mode data": (
            encoder_data_parallel(config),
            "each rank encodes a part of the tiles",
        ),
        "--compilation-config.cudagraph_mm_encoder": (
            encoder_graphs(config),
            "the graphs' manager sorts images by their size",
        ),
        "--enable-mm-embeds": (
            options.enable_mm_embeds,
            "images that come as embeddings divide a batch",
        ),
        "videos (--limit-mm-per-prompt '{\"video\": 0}' switches them off)": (
            _reads_videos(config),
            "it encodes videos apart from images",
        ),
    }
    for option, (given, reason) in refused.items():
        if given:
            raise ValueError(
                f"--enable-tower-connector-lora does not work with {option}: {reason}, "
                "so vLLM would apply adapters to the wrong tiles. Leave one of them "
                "out."
            )


def uses_packed_sequences(config: VllmConfig) -> bool:
    """Whether the tower's attention reads tiles as packed sequences."""
    options = config.model_config.get_multimodal_config()
    return options.mm_encoder_attn_backend == AttentionBackendEnum.FLASHINFER


def check_encoder_attention(config: VllmConfig) -> None:
    """Refuse kernels of the tower's attention that vLLM would end in an assertion with.

    Raises:
        ValueError: Names the option, and what to use instead.
    """
    if not has_encoder(config):
        return
    options = config.model_config.get_multimodal_config()
    backend = options.mm_encoder_attn_backend
    supported = current_platform.get_supported_vit_attn_backends()
    tower = "encoders"
    if config.model_config.architecture in RETRIEVAL_MODEL_TYPES:
        # FlashInfer's kernel needs packed sequences.
        tower, packed = "SigLIP", AttentionBackendEnum.FLASHINFER
        supported = [kernel for kernel in supported if kernel != packed]
    if backend is not None and backend not in supported:
        raise ValueError(
            f"--mm-encoder-attn-backend {backend.name} does not work for {tower} on "
            f"this platform. Leave it out, or use {_names(supported)}."
        )
    # On XPU, vLLM uses another kernel for float32 by itself.
    is_float32 = config.model_config.dtype == torch.float32
    if is_float32 and backend in _OF_16_BITS and not current_platform.is_xpu():
        others = [kernel for kernel in supported if kernel not in _OF_16_BITS]
        raise ValueError(
            f"--mm-encoder-attn-backend {backend.name} does not work with --dtype "
            f"float32. Leave it out, or use {_names(others)}."
        )
    if options.mm_encoder_attn_dtype == "fp8":
        kernels = [kernel for kernel in _OF_FP8 if kernel in supported]
        _check_fp8(config, tower, kernels)


def _check_fp8(
    config: VllmConfig, tower: str, kernels: list[AttentionBackendEnum]
) -> None:
    options = config.model_config.get_multimodal_config()
    backend = options.mm_encoder_attn_backend
    start = "--mm-encoder-attn-dtype fp8"
    if not kernels:
        raise ValueError(
            f"{start} does not work for {tower} on this platform. Leave it out."
        )
    # On ROCm vLLM may choose the kernel by itself.
    chosen = backend is None and current_platform.is_rocm()
    if backend not in kernels and not chosen:
        raise ValueError(f"{start} needs --mm-encoder-attn-backend {_names(kernels)}.")
    if encoder_graphs(config) and options.mm_encoder_fp8_scale_path is None:
        raise ValueError(
            f"{start} adapts its scales to each batch, which CUDA graphs of the "
            "encoder do not repeat. Give --mm-encoder-fp8-scale-path, or leave "
            "--compilation-config.cudagraph_mm_encoder out."
        )


def _names(kernels: Iterable[AttentionBackendEnum]) -> str:
    return " or ".join(kernel.name for kernel in kernels)


def check_encoder_alone(config: VllmConfig) -> None:
    """Refuse a pipeline in an engine that only encodes: its ranks would wait for ever.

    Raises:
        ValueError: Names both options.
    """
    # vLLM sets it for an EC producer, too.
    alone = config.model_config.get_multimodal_config().mm_encoder_only
    if alone and config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError(
            "An engine that only encodes (--mm-encoder-only, or --ec-transfer-config "
            "with ec_producer) has no language model to divide. Leave out "
            "--pipeline-parallel-size."
        )


def graph_tiles(largest_image: int, largest_batch: int) -> list[int]:
    """Numbers of tiles for which vLLM captures graphs of the encoder.

    vLLM's own defaults are powers of two: a page of 13 tiles would run in a graph of
    16, one of 9 tiles, too.

    Args:
        largest_image: Tiles of the largest image.
        largest_batch: Tiles of all images that may be encoded in one step.
    """
    tiles = {count for count in _GRAPH_TILES if count < largest_image}
    count = math.ceil(_GRAPH_TILES[-1] * _GROWTH)
    while count < largest_image:
        tiles.add(count)
        count = math.ceil(count * _GROWTH)
    tiles.add(largest_image)
    count = 2 * largest_image
    while count <= min(largest_batch, max(2 * largest_image, _BATCH_TILES)):
        tiles.add(count)
        count *= 2
    return sorted(tiles)
