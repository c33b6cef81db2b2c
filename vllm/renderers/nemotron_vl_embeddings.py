# SPDX-License-Identifier: Apache-2.0
"""Checks of images that come as embeddings, or by name from an encoder elsewhere."""

from collections.abc import Mapping
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError

from ..config.nemotron_vl import ImageConfig
from ..config.nemotron_vl_options import encoder_adapters
from ..multimodal.nemotron_vl import NemotronVLDataParser
from ..multimodal.nemotron_vl_embeddings import EMBEDS, NUM_TILES


def check_encoder(config: VllmConfig) -> None:
    """Refuse an encoder whose embeddings would have names that repeat.

    Raises:
        ValueError: Without a cache of processed images and prefix caching, vLLM does
            not hash images. The first image of each server would be published under
            the same name.
    """
    role, model = config.ec_transfer_config, config.model_config
    if role is None or not role.is_ec_producer or model is None:
        return
    images = model.multimodal_config
    if images is None or images.mm_processor_cache_gb > 0:
        return
    if not config.cache_config.enable_prefix_caching:
        raise ValueError(
            "An encoder (--ec-transfer-config) publishes embeddings under the hash of "
            "their image, which vLLM does not compute with --mm-processor-cache-gb 0 "
            "and --no-enable-prefix-caching. Leave one of them out."
        )


def check_images_without_pixels(prompt: Mapping[str, Any], config: VllmConfig) -> None:
    """Refuse images that come without pixels, embeddings or a name for them.

    Raises:
        VLLMValidationError: The engine gets no embeddings from encoders or does not
            trust names, an image has no ``uuid``, or the prompt has settings for the
            reading of images, from which vLLM would make another name.
    """
    data = (prompt.get("multi_modal_data") or {}).get("image")
    if not isinstance(data, Mapping):
        return
    if EMBEDS in data:
        if isinstance(data[EMBEDS], (torch.Tensor, list, tuple)):
            return
        raise VLLMValidationError(
            f"{EMBEDS} must be a tensor, or a list with one for each image.",
            parameter="image",
        )
    role = config.ec_transfer_config
    names = (prompt.get("multi_modal_uuids") or {}).get("image") or [None]
    settings = {
        "mm_processor_kwargs": prompt.get("mm_processor_kwargs"),
        "media_io_kwargs": (prompt.get("media_io_kwargs") or {}).get("image"),
    }
    problem = ""
    # vLLM lets those through to all engines that get a prompt's KV cache, too.
    if role is None or not role.is_ec_consumer:
        problem = (
            f"needs {EMBEDS}, too: only an engine whose --ec-transfer-config makes it "
            "a consumer gets them from an encoder"
        )
    elif not ImageConfig.from_vllm_config(config).trusted_uuids:
        problem = (
            "is read only by a server with the setting trusted_uuids: whoever knows "
            "the name of an image can ask about it"
        )
    elif not all([names] if isinstance(names, str) else names):
        problem = "needs the uuid under which the encoder published its embeddings"
    elif given := [name for name, setting in settings.items() if setting]:
        problem = (
            f"takes no {given[0]}, neither of the request nor of this server; give "
            "them to the encoder"
        )
    if problem:
        raise VLLMValidationError(
            f"An image with {NUM_TILES} alone {problem}.", parameter="image"
        )


def check_no_embeddings(prompt: Mapping[str, Any], config: VllmConfig) -> None:
    """Refuse embeddings of images where adapters apply to the encoder.

    vLLM would count the tiles of such an image, which are not encoded, and so assign
    the adapters of the next ones wrongly. The option that allows embeddings is refused
    at start, but vLLM sets it by itself in readers of a connector.

    Raises:
        VLLMValidationError: The prompt has embeddings.
    """
    if not encoder_adapters(config):
        return
    data = (prompt.get("multi_modal_data") or {}).get("image")
    if isinstance(data, Mapping):
        data = data.get(EMBEDS)
    if NemotronVLDataParser.is_embeddings(data):
        raise VLLMValidationError(
            f"{EMBEDS} in a request do not work with --enable-tower-connector-lora: "
            "vLLM would apply adapters to the wrong tiles. Send the image.",
            parameter="image",
        )
