# SPDX-License-Identifier: Apache-2.0
"""``Llama_Nemotron_Nano_VL``: C-RADIO tower, pixel shuffle, MLP connector, Llama.

Built on vLLM's InternVL model and C-RADIO tower; this file holds only what differs.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn as nn
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.interfaces import (
    SupportsEagle,
    SupportsEagle3,
    SupportsEncoderCudaGraph,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
    SupportsQuant,
)
from vllm.model_executor.models.utils import StageMissingLayer
from vllm.model_executor.models.vision import is_vit_use_data_parallel
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.utils.torch_utils import set_default_torch_dtype

from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...config.nemotron_vl_options import encoder_adapters
from .nemotron_vl_graphs import EncoderGraphs
from .nemotron_vl_layout import (
    TOWER_LINEAR,
    Layout,
    chat_layout,
    num_prefix_tokens,
)
from .nemotron_vl_lora import adapter_mapper
from .nemotron_vl_names import (
    HF_TO_VLLM,
    resolve_patterns,
    tower_layers,
)
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
)
from .nemotron_vl_tower import InputConditioner, NemotronVLRadioModel
from .nemotron_vl_weights import Weights


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

    hf_to_vllm_mapper = HF_TO_VLLM
    packed_modules_mapping = EncoderGraphs.packed_modules_mapping | {"qkv": ["qkv"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model_config = vllm_config.model_config
        vision = self.config.vision_config
        self.prefix_tokens = num_prefix_tokens(vision)
        self.input_conditioner = InputConditioner(
            vision.norm_mean,
            vision.norm_std,
            self.encoder_dtype,
            persistent=self._load_format != "dummy",
        )
        if vllm_config.lora_config is not None:
            # vLLM maps the names of an adapter's layers with the instance's mapper.
            self.hf_to_vllm_mapper = adapter_mapper(
                self.config,
                encoder=encoder_adapters(vllm_config),
                encoder_is_here=not isinstance(self.vision_model, StageMissingLayer),
                language_is_here=not isinstance(self.language_model, StageMissingLayer),
            )
        if vllm_config.speculative_config is not None:
            # A multimodal draft model reads the token's id from the configuration.
            tokenizer = cached_tokenizer_from_config(model_config)
            self.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def _patch_quant_config(
        self, config: PreTrainedConfig, quant_config: QuantizationConfig | None
    ) -> None:
        if quant_config is not None:
            resolve_patterns(quant_config, tower_layers(config))
        super()._patch_quant_config(config, quant_config)

    def _layout(self) -> Layout:
        return chat_layout(self.config)

    @classmethod
    def _encoder_layers(cls, config: PreTrainedConfig) -> list[str]:
        layers = tower_layers(config).values()
        linear = [name for name in layers if name.endswith(TOWER_LINEAR)]
        return [*linear, "mlp1.1", "mlp1.3"]

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

    def _encoder_weights(self) -> Iterator[torch.Tensor]:
        return chain(super()._encoder_weights(), self.input_conditioner.buffers())

    def _condition(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.input_conditioner(pixel_values)

    def _load_checked(self, weights: Weights, whole: bool) -> set[str]:
        rest = self.input_conditioner.load_statistics(weights, whole)
        return super()._load_checked(rest, whole)
