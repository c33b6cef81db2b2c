# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of the encoder: what vLLM's manager of these graphs asks of the model.

The manager sorts images by size, packs them into batches and, with an encoder that is
data-parallel, has shared them out among the ranks before it calls the model. So all
here computes on this rank alone.
"""

import sys
from typing import Any

import torch
from vllm.v1.worker.encoder_cudagraph_defs import EncoderItemSpec

from ...multimodal.nemotron_vl_embeddings import EMBEDS
from .nemotron_vl_base import DIGESTS, PIXELS, NemotronVLBase, check_pixels


class EncoderGraphs(NemotronVLBase):
    """InternVL's methods for encoder graphs, with what differs for these models.

    Images are replayed from graphs of a number of tiles. Those that fit no graph are
    encoded with `TileReuse`. Embeddings that a request brought pass through.
    """

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
