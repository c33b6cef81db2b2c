# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of the encoder: what vLLM's manager of these graphs asks of the model.

The manager sorts images by size, packs them into batches and, with an encoder that is
data-parallel, has shared them out among the ranks before it calls the model. So all
here computes on this rank alone.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from vllm.model_executor.models.internvl import InternVLChatModel
from vllm.v1.worker.encoder_cudagraph_defs import EncoderItemSpec

from ...multimodal.nemotron_vl_embeddings import EMBEDS, NUM_TILES
from .nemotron_vl_reuse import TileReuse

PIXELS, DIGESTS = "pixel_values_flat", "tile_digests"


def check_pixels(mm_kwargs: dict[str, Any]) -> None:
    """Explain images that brought neither pixels nor embeddings.

    Raises:
        RuntimeError: Only their numbers of tiles are there.
    """
    if PIXELS not in mm_kwargs and NUM_TILES in mm_kwargs:
        raise RuntimeError(
            "The EC connector has lost the embeddings of an image, and the "
            "request brought no pixels. The encoder must encode it again."
        )


class EncoderGraphs(InternVLChatModel):
    """InternVL's methods for encoder graphs, with what differs for this model.

    Images are replayed from graphs of a number of tiles. Those that fit no graph are
    encoded with `TileReuse`. Embeddings that a request brought pass through.
    """

    tile_reuse: TileReuse | None
    dtype: torch.dtype

    def _encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of tiles, computed on this rank."""
        raise NotImplementedError

    def _embed_tiles(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        pixels: torch.Tensor,
        digests: torch.Tensor | None,
    ) -> torch.Tensor:
        """Features of tiles, of which equal ones are encoded once.

        Args:
            encode: As of `TileReuse`.
            pixels: ``(tiles, 3, size, size)``.
            digests: As of `TileReuse`; without them, all tiles are encoded.
        """
        if self.tile_reuse is None or digests is None:
            return encode(pixels)
        return self.tile_reuse(encode, pixels, digests)

    def get_encoder_cudagraph_config(self):
        config = super().get_encoder_cudagraph_config()
        config.modalities = ["image"]
        return config

    def get_input_modality(self, mm_kwargs: dict[str, Any]) -> str:
        return "image"  # of the modalities above

    def get_encoder_cudagraph_item_specs(self, mm_kwargs: dict[str, Any]):
        if EMBEDS in mm_kwargs:
            # More tokens than any graph has: the manager then calls
            # `encoder_eager_forward`.
            return [
                EncoderItemSpec(
                    input_size=0,
                    output_tokens=len(rows),
                    path_output_tokens={"default": sys.maxsize},
                )
                for rows in mm_kwargs[EMBEDS]
            ]
        check_pixels(mm_kwargs)
        return super().get_encoder_cudagraph_item_specs(mm_kwargs)

    def select_encoder_cudagraph_items(
        self, mm_kwargs: dict[str, Any], indices: list[int]
    ) -> dict[str, Any]:
        if EMBEDS in mm_kwargs:
            return {EMBEDS: [mm_kwargs[EMBEDS][index] for index in indices]}
        chosen = super().select_encoder_cudagraph_items(mm_kwargs, indices)
        if (digests := mm_kwargs.get(DIGESTS)) is not None:
            of_images = digests.split(self._get_internvl_patches_list(mm_kwargs))
            chosen[DIGESTS] = torch.cat(
                [digests[:0], *(of_images[index] for index in indices)]
            )
        return chosen

    def prepare_encoder_cudagraph_capture_inputs(self, *args: Any, **kwargs: Any):
        inputs = super().prepare_encoder_cudagraph_capture_inputs(*args, **kwargs)
        if self.multimodal_config.mm_device_do_normalize:
            # The processor then sends uint8 pixels, so the graph must read them.
            inputs.values = {
                name: torch.zeros_like(pixels, dtype=torch.uint8)
                for name, pixels in inputs.values.items()
            }
        return inputs

    def encoder_cudagraph_forward(
        self, values: dict[str, torch.Tensor], path: str = "default"
    ) -> torch.Tensor:
        return self._encode_tiles(values[PIXELS]).flatten(0, 1)

    def encoder_eager_forward(
        self, mm_kwargs: dict[str, Any], path: str = "default"
    ) -> torch.Tensor:
        if EMBEDS in mm_kwargs:
            return torch.cat([*mm_kwargs[EMBEDS]]).to(self.dtype)
        pixels, digests = mm_kwargs[PIXELS], mm_kwargs.get(DIGESTS)
        return self._embed_tiles(self._encode_tiles, pixels, digests).flatten(0, 1)
