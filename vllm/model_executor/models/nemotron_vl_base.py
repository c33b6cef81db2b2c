# SPDX-License-Identifier: Apache-2.0
"""What the chat model and the models that find and rank pages have in common.

vLLM's InternVL model for images alone: a tower, a pixel shuffle, an MLP as connector
and a Llama. Equal tiles are encoded once, and a bounded number of tiles at once.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.internvl import InternVLChatModel
from vllm.model_executor.models.utils import AutoWeightsLoader, StageMissingLayer
from vllm.model_executor.models.vision import run_dp_sharded_vision_model
from vllm.multimodal.inputs import MultiModalKwargsItem

from ...config.nemotron_vl import EncoderConfig
from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...config.nemotron_vl_options import encoder_adapters
from ...multimodal.nemotron_vl_embeddings import EMBEDS, NUM_TILES
from .nemotron_vl_layout import Layout
from .nemotron_vl_precision import (
    encoder_precision,
    flatten_quantised_inputs,
    keep_encoder_precision,
)
from .nemotron_vl_processing import NemotronVLImagePixelInputs
from .nemotron_vl_reload import Reload, is_whole
from .nemotron_vl_reuse import TileReuse, make_tile_reuse
from .nemotron_vl_weights import (
    Weights,
    checked,
    quantised_parameters,
    unreadable_files_explained,
)

logger = init_logger("vllm.model_executor.models.nemotron_vl")

PIXELS, DIGESTS = "pixel_values_flat", "tile_digests"


def check_pixels(mm_kwargs: dict[str, object]) -> None:
    """Explain images that brought neither pixels nor embeddings.

    Raises:
        RuntimeError: Only their numbers of tiles are there.
    """
    if PIXELS not in mm_kwargs and NUM_TILES in mm_kwargs:
        raise RuntimeError(
            "The EC connector has lost the embeddings of an image, and the "
            "request brought no pixels. The encoder must encode it again."
        )


class NemotronVLBase(InternVLChatModel):
    """Images as tiles, of which equal ones are encoded once."""

    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    tower_modalities = {"image"}  # the tower is built where one of them is read

    prefix_tokens = 0  # of the tower, before the patches of a tile
    dtype: torch.dtype
    max_encoder_tiles: int
    tile_reuse: TileReuse | None

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality.startswith("image"):
            return IMAGE_TOKEN
        raise ValueError(f"This model reads images only, not {modality}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.dtype = cast(torch.dtype, vllm_config.model_config.dtype)
        self._load_format = vllm_config.load_config.load_format
        self._reload = Reload(self, vllm_config)
        flatten_quantised_inputs(self.vision_model, self.mlp1)
        encoder_config = EncoderConfig.from_vllm_config(vllm_config)
        self.max_encoder_tiles = cast(int, encoder_config.max_encoder_tiles)
        self.tile_reuse = None
        if not encoder_adapters(vllm_config):
            self.tile_reuse = make_tile_reuse(
                vllm_config,
                (self.num_image_token, self.config.text_config.hidden_size),
                self._encoder_weights,
            )
            return
        # vLLM assigns adapters for one forward with all tiles of a batch, so tiles
        # may be neither left out nor split.
        self.max_encoder_tiles = sys.maxsize
        if encoder_config != EncoderConfig():
            logger.warning_once(
                "The settings of the encoder in additional_config have no "
                "effect with --enable-tower-connector-lora."
            )

    def _mark_tower_model(self, vllm_config: VllmConfig, modalities, **kwargs):
        # InternVL marks the tower for images and videos. With images switched off,
        # the tower would stay in memory for the videos.
        return super()._mark_tower_model(vllm_config, self.tower_modalities, **kwargs)

    def _patch_quant_config(
        self, config: PreTrainedConfig, quant_config: QuantizationConfig | None
    ) -> None:
        # InternVL calls this before it builds the parts.
        super()._patch_quant_config(config, quant_config)
        if quant_config is not None:
            keep_encoder_precision(quant_config)
        self.encoder_quant_config, self.encoder_dtype = encoder_precision(
            config,
            quant_config,
            torch.get_default_dtype(),
            self._encoder_layers(config),
        )

    def _layout(self) -> Layout:
        """The tensors that the configuration implies."""
        raise NotImplementedError

    @classmethod
    def _encoder_layers(cls, config: PreTrainedConfig) -> list[str]:
        """Linear layers of the encoder that may be quantised, by vLLM's names."""
        raise NotImplementedError

    def _encoder_weights(self) -> Iterator[torch.Tensor]:
        """What the embeddings of a tile depend on."""
        return chain(self.vision_model.parameters(), self.mlp1.parameters())

    def _condition(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tower's input for the processor's pixels."""
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Embeddings of images, ``(tokens, hidden_size)`` for each.

        Args:
            kwargs: The fields of vLLM's InternVL model, and ``tile_digests`` for
                `TileReuse`. Without digests all tiles are encoded.
        """
        if (embeds := kwargs.get(EMBEDS)) is not None:
            # InternVL's check refuses a batch of images with different lengths.
            return cast(MultiModalEmbeddings, embeds)
        check_pixels(kwargs)
        images = self._parse_and_validate_image_input(**kwargs)
        if images is None:
            return []
        features = self._embed_tiles(
            self.extract_feature, images["pixel_values_flat"], images["tile_digests"]
        )
        return [x.flatten(0, 1) for x in features.split(images["num_patches"].tolist())]

    def _parse_and_validate_image_input(  # type: ignore[override]
        self, **kwargs: object
    ) -> NemotronVLImagePixelInputs | None:
        images = super()._parse_and_validate_image_input(**kwargs)
        if images is None:
            return None
        return NemotronVLImagePixelInputs(
            type="pixel_values",
            pixel_values_flat=images["pixel_values_flat"],
            num_patches=images["num_patches"],
            tile_digests=kwargs.get(DIGESTS),
        )

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

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features of tiles.

        Args:
            pixel_values: ``(tiles, 3, size, size)``, as the processor gives them.

        Returns:
            ``(tiles, num_image_token, hidden_size of the language model)``.
        """
        if self.use_data_parallel:
            return run_dp_sharded_vision_model(
                pixel_values,
                self._encode_tiles,  # type: ignore[arg-type]
            )
        return self._encode_tiles(pixel_values)

    def _encode_tiles(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of tiles, computed on this rank."""
        parts = pixel_values.split(self.max_encoder_tiles)
        if len(parts) > 1:
            return torch.cat([self._encode_tiles(part) for part in parts])
        features = self.vision_model(self._condition(pixel_values))
        side = round(features.shape[1] ** 0.5)
        features = features.unflatten(1, (side, side))
        features = self.pixel_shuffle(features, scale_factor=self.downsample_ratio)
        return self.mlp1(features.flatten(1, 2)).to(self.dtype)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint. Later calls may load a part of one, but not from files.

        Raises:
            ValueError: Names a tensor that is missing, unknown or of a wrong
                shape, or says that a file cannot be read.
            RuntimeError: A reload from files ended in the middle.
        """
        if self.tile_reuse is not None:
            self.tile_reuse.clear()
        whole = is_whole(weights, self.training, self._load_format)
        layout = self._layout()
        check = partial(
            self._checked,
            layout=layout,
            complete=whole,
            unused=self._unused(layout),
            quantised=quantised_parameters(self, layout) if whole else {},
        )
        with self._reload.guarded(check, whole), unreadable_files_explained():
            loaded = self._load_checked(check(weights), whole)
        self.eval()  # most of vLLM's loaders call it, too
        return loaded

    def _unused(self, layout: Layout) -> tuple[str, ...]:
        """How the names of parts begin that the engine does without."""
        unused: tuple[str, ...] = ()
        if self.multimodal_config.mm_encoder_only:
            unused += (layout.language_model,)
        if isinstance(self.vision_model, StageMissingLayer):
            unused += layout.encoder
        return unused

    def _checked(self, weights: Weights, **options: Any) -> Weights:
        """The tensors of a checkpoint, see `checked`."""
        return checked(weights, **options)

    def _load_checked(self, weights: Weights, whole: bool) -> set[str]:
        """Load tensors, see `is_whole`; give the names of vLLM's parameters."""
        loader = AutoWeightsLoader(self)
        return loader.load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_lora_token_counts(
        self,
        *,
        modality: str,
        mm_kwargs: MultiModalKwargsItem | None,
        num_mm_embeds: int,
    ) -> tuple[int, int | None]:
        """Tokens in the tower and in the connector for a number of embeddings."""
        # Not from the tower, which a process may not have.
        tiles = num_mm_embeds // self.num_image_token
        tower_tokens = tiles * (self.patch_tokens + self.prefix_tokens)
        return tower_tokens, tiles * self.num_image_token
