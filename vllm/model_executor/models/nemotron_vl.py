# SPDX-License-Identifier: Apache-2.0
"""``Llama_Nemotron_Nano_VL``: C-RADIO tower, pixel shuffle, MLP connector, Llama.

Built on vLLM's InternVL model and C-RADIO tower; this file holds only what differs.
"""

import sys
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
import torch.nn as nn
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsEagle,
    SupportsEagle3,
    SupportsEncoderCudaGraph,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
    SupportsQuant,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, StageMissingLayer
from vllm.model_executor.models.vision import (
    is_vit_use_data_parallel,
    run_dp_sharded_vision_model,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.utils.torch_utils import set_default_torch_dtype

from ...config.nemotron_vl import EncoderConfig
from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...config.nemotron_vl_options import (
    encoder_adapters,
)
from ...multimodal.nemotron_vl_embeddings import EMBEDS
from .nemotron_vl_graphs import DIGESTS, EncoderGraphs, check_pixels
from .nemotron_vl_layout import num_prefix_tokens
from .nemotron_vl_lora import adapter_mapper
from .nemotron_vl_names import (
    HF_TO_VLLM,
    resolve_patterns,
    tower_layers,
)
from .nemotron_vl_precision import (
    encoder_precision,
    flatten_quantised_inputs,
    keep_encoder_precision,
)
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLImagePixelInputs,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
)
from .nemotron_vl_reload import Reload, is_whole
from .nemotron_vl_reuse import TileReuse, make_tile_reuse
from .nemotron_vl_tower import InputConditioner, NemotronVLRadioModel
from .nemotron_vl_weights import (
    checked,
    quantised_parameters,
    unreadable_files_explained,
)

logger = init_logger("vllm.model_executor.models.nemotron_vl")


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLMultiModalProcessor,
    info=NemotronVLProcessingInfo,
    dummy_inputs=NemotronVLDummyInputsBuilder,
)
class LlamaNemotronVLChatModel(
    EncoderGraphs,
    SupportsMultiModal,
    SupportsPP,
    SupportsLoRA,
    SupportsQuant,
    SupportsEagle,
    SupportsEagle3,
    SupportsEncoderCudaGraph,
):
    """Llama-3.1-Nemotron-Nano-VL: images and text in, text out."""

    # Most of these flags are inherited, too. vLLM caches a model's flags until
    # the model's own file changes, so a change in a base class would be missed.
    supports_encoder_tp_data = True
    supports_mm_device_do_normalize = True
    supports_tower_connector_lora = True

    tower_modalities = {"image"}  # the tower is built where one of them is read

    hf_to_vllm_mapper = HF_TO_VLLM
    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
        "qkv": ["qkv"],
    }

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality.startswith("image"):
            return IMAGE_TOKEN
        raise ValueError(f"This model reads images only, not {modality}.")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model_config = vllm_config.model_config
        vision = self.config.vision_config
        self.dtype = cast(torch.dtype, model_config.dtype)
        self._load_format = vllm_config.load_config.load_format
        self.input_conditioner = InputConditioner(
            vision.norm_mean,
            vision.norm_std,
            self.encoder_dtype,
            persistent=self._load_format != "dummy",
        )
        flatten_quantised_inputs(self.vision_model, self.mlp1)
        self._reload = Reload(self, vllm_config)
        encoder_config = EncoderConfig.from_vllm_config(vllm_config)
        if vllm_config.lora_config is not None:
            # vLLM maps the names of an adapter's layers with the instance's mapper.
            self.hf_to_vllm_mapper = adapter_mapper(
                self.config,
                encoder=encoder_adapters(vllm_config),
                encoder_is_here=not isinstance(self.vision_model, StageMissingLayer),
                language_is_here=not isinstance(self.language_model, StageMissingLayer),
            )
        self.max_encoder_tiles = encoder_config.max_encoder_tiles
        self.tile_reuse: TileReuse | None = None
        if not encoder_adapters(vllm_config):
            self.tile_reuse = make_tile_reuse(
                vllm_config,
                (self.num_image_token, self.config.text_config.hidden_size),
                lambda: chain(
                    self.input_conditioner.buffers(),
                    self.vision_model.parameters(),
                    self.mlp1.parameters(),
                ),
            )
        else:
            # vLLM assigns adapters for one forward with all tiles of a batch, so
            # tiles may be neither left out nor split.
            self.max_encoder_tiles = sys.maxsize
            if encoder_config != EncoderConfig():
                logger.warning_once(
                    "The settings of the encoder in additional_config have no "
                    "effect with --enable-tower-connector-lora."
                )
        if vllm_config.speculative_config is not None:
            # A multimodal draft model reads the token's id from the configuration.
            tokenizer = cached_tokenizer_from_config(model_config)
            self.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

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
            resolve_patterns(quant_config, tower_layers(config))
        self.encoder_quant_config, self.encoder_dtype = encoder_precision(
            config, quant_config, torch.get_default_dtype()
        )

    def _init_vision_model(
        self,
        config: PreTrainedConfig,
        quant_config: QuantizationConfig | None,
        *,
        prefix: str,
    ) -> nn.Module:
        with set_default_torch_dtype(self.encoder_dtype):
            return NemotronVLRadioModel(
                config, self.encoder_quant_config, prefix=prefix
            )

    def _init_mlp1(self, config: PreTrainedConfig) -> nn.Module:
        merged = config.vit_hidden_size * round(1 / self.downsample_ratio) ** 2
        options: dict[str, Any] = dict(
            quant_config=self.encoder_quant_config,
            disable_tp=is_vit_use_data_parallel(),
            return_bias=False,
        )
        inner, outer = config.projector_hidden_size, config.text_config.hidden_size
        with set_default_torch_dtype(self.encoder_dtype):
            return nn.Sequential(
                nn.LayerNorm(merged),
                ColumnParallelLinear(merged, inner, prefix="mlp1.1", **options),
                nn.GELU(),
                RowParallelLinear(inner, outer, prefix="mlp1.3", **options),
            )

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

    def extract_feature(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image features of tiles.

        Args:
            pixel_values: ``(tiles, 3, size, size)``, uint8 or float in 0..1.

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
        parts = pixel_values.split(self.max_encoder_tiles)
        if len(parts) > 1:
            return torch.cat([self._encode_tiles(part) for part in parts])
        features = self.vision_model(self.input_conditioner(pixel_values))
        side = round(features.shape[1] ** 0.5)
        features = features.unflatten(1, (side, side))
        features = self.pixel_shuffle(features, scale_factor=self.downsample_ratio)
        return self.mlp1(features.flatten(1, 2)).to(self.dtype)

    def get_mm_lora_token_counts(
        self,
        *,
        modality: str,
        mm_kwargs: MultiModalKwargsItem | None,
        num_mm_embeds: int,
    ) -> tuple[int, int | None]:
        """Tokens in the tower and in the connector for a number of embeddings."""
        tiles = num_mm_embeds // self.num_image_token
        # From the configuration: later pipeline ranks have no tower to ask.
        prefix_tokens = num_prefix_tokens(self.config.vision_config)
        tower_tokens = tiles * (self.patch_tokens + prefix_tokens)
        return tower_tokens, tiles * self.num_image_token

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
        packed = self.packed_modules_mapping
        check = partial(
            checked,
            config=self.config,
            complete=whole,
            encoder_only=self.multimodal_config.mm_encoder_only,
            quantised=quantised_parameters(self, packed, self.config) if whole else {},
        )
        weights = self.input_conditioner.load_statistics(check(weights), whole)
        with self._reload.guarded(check, whole), unreadable_files_explained():
            loaded = AutoWeightsLoader(self).load_weights(
                weights, mapper=self.hf_to_vllm_mapper
            )
        self.eval()  # most of vLLM's loaders call it, too
        return loaded
