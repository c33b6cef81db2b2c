# SPDX-License-Identifier: Apache-2.0
"""Image processor and processor of the models that find and rank pages.

They cut images as the chat model's do. The tokens between ``<img>`` and ``</img>`` are
``<IMG_CONTEXT>``, and SigLIP's mean and standard deviation are 0.5.
"""

from typing import Any

from transformers import BatchFeature

from ...config.nemotron_vl_names import CONTEXT_TOKEN, IMAGE_END, IMAGE_START
from .nemotron_vl import NemotronVLImageProcessor, NemotronVLProcessor

RETRIEVAL_TOKENS = (IMAGE_START, CONTEXT_TOKEN, IMAGE_END)


class NemotronVLRetrievalImageProcessor(NemotronVLImageProcessor):
    """Cuts images into square tiles: uint8, or normalised for SigLIP in float32.

    By default the pixels are those of vLLM's in-tree processor, bit by bit.
    """

    recipes = ("exact", "fast")

    def __init__(self, *args: Any, resize: str = "exact", **kwargs: Any) -> None:
        super().__init__(*args, resize=resize, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """As of the base class. With ``do_rescale``, pixels are in -1..1."""
        features = super().__call__(*args, **kwargs)
        if self.do_rescale:
            features["pixel_values_flat"].sub_(0.5).div_(0.5)
        return features


class NemotronVLRetrievalProcessor(NemotronVLProcessor):
    """Joins tokenizer and image processor; ``<image>`` is an image's placeholder."""

    image_tokens = RETRIEVAL_TOKENS
    image_processor_class = NemotronVLRetrievalImageProcessor
