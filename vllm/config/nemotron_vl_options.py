# SPDX-License-Identifier: Apache-2.0
"""Options of vLLM that do not work together with this model, or need a default."""

import math

from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from .nemotron_vl_names import VIDEO_ARCHITECTURE

# Numbers of tiles for which a graph is captured: images have 1 tile, or at least 3
# with their thumbnail. Above 9, numbers grow by this factor.
_GRAPH_TILES = (1, 3, 5, 7, 9)
_GROWTH = 1.4


def encoder_graphs(config: VllmConfig) -> bool:
    """Whether vLLM captures CUDA graphs of the encoder."""
    eager = config.model_config.enforce_eager
    return config.compilation_config.cudagraph_mm_encoder and not eager


def encoder_data_parallel(config: VllmConfig) -> bool:
    """Whether several ranks share out the tiles."""
    ranks = config.parallel_config.tensor_parallel_size
    mode = config.model_config.get_multimodal_config().mm_encoder_tp_mode
    return mode == "data" and ranks > 1


def check_adapters(config: VllmConfig) -> None:
    """Refuse adapters on the encoder where vLLM would apply them to other tiles.

    vLLM assigns adapters to the tiles of all images and videos of a step, in the order
    in which it schedules them.

    Raises:
        ValueError: Names the option, and what to leave out.
    """
    lora = config.lora_config
    if lora is None or not lora.enable_tower_connector_lora:
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
            VIDEO_ARCHITECTURE in config.model_config.architectures
            and options.get_limit_per_prompt("video"),
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


def check_encoder_attention(config: VllmConfig) -> None:
    """Refuse kernels of attention that do not take whole tiles.

    vLLM's FlashInfer backend reads packed sequences, with their offsets in memory, and
    waits for the device in each block. On CUDA, FP8 attention is FlashInfer's.

    Raises:
        ValueError: Names the option.
    """
    options = config.model_config.get_multimodal_config()
    backend = options.mm_encoder_attn_backend
    if backend == AttentionBackendEnum.FLASHINFER:
        refused = "--mm-encoder-attn-backend FLASHINFER"
    elif options.mm_encoder_attn_dtype == "fp8" and not current_platform.is_rocm():
        refused = "--mm-encoder-attn-dtype fp8, which needs FLASHINFER here,"
    else:
        return
    raise ValueError(
        f"{refused} does not work with this model's tower: that backend takes packed "
        "sequences, not tiles. Leave it out; vLLM then chooses FLASH_ATTN, TRITON_ATTN "
        "or TORCH_SDPA."
    )


def check_encoder_alone(config: VllmConfig) -> None:
    """Refuse a pipeline in an engine that only encodes: its ranks would wait for ever.

    Raises:
        ValueError: Names both options.
    """
    role = config.ec_transfer_config
    if role is None or not role.is_ec_producer or role.is_ec_consumer:
        return
    if config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError(
            "An engine that only encodes (--ec-transfer-config with ec_producer) has "
            "no language model to divide. Leave out --pipeline-parallel-size."
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
    if 2 * largest_image <= largest_batch:
        tiles.add(2 * largest_image)
    return sorted(tiles)
