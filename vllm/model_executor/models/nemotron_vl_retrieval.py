# SPDX-License-Identifier: Apache-2.0
"""The models that find and rank pages: SigLIP, pixel shuffle, MLP, bidirectional Llama.

Built on vLLM's InternVL, SigLIP and Llama models; this file holds only what differs
from the chat model.
"""

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.nn as nn
from transformers import PreTrainedConfig
from vllm.config import PoolerConfig, VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.pooler import DispatchPooler
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.interfaces import (
    SupportsCrossEncoding,
    SupportsQuant,
    SupportsScoreTemplate,
)
from vllm.model_executor.models.interfaces_base import VllmModelForPooling
from vllm.model_executor.models.siglip import SiglipVisionModel
from vllm.model_executor.models.utils import (
    StageMissingLayer,
    WeightsMapper,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.torch_utils import set_default_torch_dtype

from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...config.nemotron_vl_options import encoder_adapters
from ...transformers_utils.configs.nemotron_vl_retrieval import NemotronVLEmbedConfig
from ...transformers_utils.processors.nemotron_vl_retrieval import (
    NemotronVLRetrievalProcessor,
)
from .nemotron_vl_graphs import EncoderGraphs
from .nemotron_vl_layout import Layout
from .nemotron_vl_lora import renamed
from .nemotron_vl_names import resolve_patterns
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
)
from .nemotron_vl_retrieval_config import checkpoint_settings
from .nemotron_vl_retrieval_layout import (
    RANKING_PREFIX,
    linear_layers,
    retrieval_layout,
    with_aliases,
)
from .nemotron_vl_weights import Weights

TOWER_BLOCKS = "vision_model.vision_model.encoder.layers"


class NemotronVLRetrievalProcessingInfo(NemotronVLProcessingInfo):
    """Settings come from ``processor_config.json``, then from ``config.json``."""

    processor_class = NemotronVLRetrievalProcessor

    def get_hf_config(self) -> Any:
        return self.ctx.get_hf_config(NemotronVLEmbedConfig)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return checkpoint_settings(self.ctx.model_config)

    def checkpoint_settings(self) -> dict[str, Any]:
        return self._settings


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLMultiModalProcessor,
    info=NemotronVLRetrievalProcessingInfo,
    dummy_inputs=NemotronVLDummyInputsBuilder,
)
class LlamaNemotronVLForEmbedding(  # type: ignore[misc]
    EncoderGraphs, SupportsQuant, VllmModelForPooling
):
    """llama-nemotron-embed-vl: an embedding of a text, an image or both."""

    # vLLM caches a model's flags until the model's own file changes.
    is_pooling_model = True
    supports_encoder_tp_data = True
    supports_mm_device_do_normalize = True
    supports_tower_connector_lora = True

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            f"language_model.{name}.": f"language_model.model.{name}."
            for name in ("layers", "embed_tokens", "norm")
        }
        | {
            f"vision_model.{name}.": f"vision_model.vision_model.{name}."
            for name in ("encoder", "embeddings", "post_layernorm")
        }
        # Heads that some checkpoints have, and nothing uses.
        | dict.fromkeys(("vision_model.head.", "vision_model.vision_model.head."))
        | dict.fromkeys(("language_model.score.", "language_model.lm_head."))
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.lora_config is not None:
            adapted = encoder_adapters(vllm_config)
            self.hf_to_vllm_mapper |= WeightsMapper(
                orig_to_new_regex=renamed(
                    with_aliases(linear_layers(self._layout(), adapted)),
                    encoder=adapted,
                    encoder_is_here=not isinstance(
                        self.vision_model, StageMissingLayer
                    ),
                )
            )
        self._init_pooler(vllm_config, prefix)

    def _init_pooler(self, vllm_config: VllmConfig, prefix: str) -> None:
        config = cast(PoolerConfig, vllm_config.model_config.pooler_config)
        self.pooler = DispatchPooler.for_embedding(config)

    def _patch_quant_config(
        self, config: PreTrainedConfig, quant_config: QuantizationConfig | None
    ) -> None:
        if quant_config is not None:
            names = with_aliases(linear_layers(self._layout(), encoder=True))
            mapper = type(self).hf_to_vllm_mapper
            resolve_patterns(
                quant_config,
                dict(zip(names, mapper.apply_list(names), strict=True)),
            )
        super()._patch_quant_config(config, quant_config)

    @classmethod
    def _encoder_layers(cls, config: PreTrainedConfig) -> list[str]:
        blocks = range(config.vision_config.num_hidden_layers)
        inner = ["self_attn.qkv_proj", "self_attn.out_proj"]
        widths = (
            config.vision_config.hidden_size,
            config.vision_config.intermediate_size,
        )
        # vLLM's SigLIP quantises an MLP of other widths by few methods, and the
        # published one is 4304 wide.
        if not any(width % 64 for width in widths):
            inner += ["mlp.fc1", "mlp.fc2"]
        return [f"{TOWER_BLOCKS}.{block}.{name}" for block in blocks for name in inner]

    def _init_vision_model(
        self,
        config: PreTrainedConfig,
        quant_config: QuantizationConfig | None,
        *,
        prefix: str,
    ) -> nn.Module:
        with set_default_torch_dtype(self.encoder_dtype):
            return SiglipVisionModel(
                config.vision_config,
                self.encoder_quant_config,
                prefix=prefix,
                use_head=False,
            )

    def _init_mlp1(self, config: PreTrainedConfig) -> nn.Module:
        width = config.vision_config.hidden_size
        merged = width * round(1 / self.downsample_ratio) ** 2
        hidden = config.text_config.hidden_size
        # vLLM applies adapters to its own layers only. As in vLLM's in-tree model they
        # are never quantised: an ignore list need not name them.
        linear = partial(ReplicatedLinear, return_bias=False)
        with set_default_torch_dtype(self.encoder_dtype):
            return nn.Sequential(
                nn.LayerNorm(merged),
                linear(merged, hidden),
                nn.GELU(),
                linear(hidden, hidden),
            )

    def _condition(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.dtype == torch.uint8:  # else the processor has normalised them
            pixel_values = pixel_values.float() / 127.5 - 1
        return pixel_values.to(self.encoder_dtype)

    def _layout(self) -> Layout:
        return retrieval_layout(self.config)

    def _checked(self, weights: Weights, **options: Any) -> Weights:
        # transformers 5 saves SigLIP's tensors without the inner `vision_model`.
        known = [*options["layout"].required]
        mapper = type(self).hf_to_vllm_mapper
        published = {
            new.rpartition(".")[0]: old.rpartition(".")[0]
            for old, new in zip(known, mapper.apply_list(known), strict=True)
        }
        blocks = self.config.vision_config.num_hidden_layers

        def rename(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                for mapped in mapper.apply_list([name]):  # none, if it is left out
                    number = mapped.removeprefix(f"{TOWER_BLOCKS}.").partition(".")[0]
                    if number.isdecimal() and int(number) >= blocks:
                        continue  # SigLIP leaves out blocks that config.json does
                    layer, dot, kind = mapped.rpartition(".")
                    if layer in published:
                        name = published[layer] + dot + kind
                    yield name, tensor

        return super()._checked(rename(weights), **options)


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLMultiModalProcessor,
    info=NemotronVLRetrievalProcessingInfo,
    dummy_inputs=NemotronVLDummyInputsBuilder,
)
class LlamaNemotronVLForSequenceClassification(  # type: ignore[misc]
    LlamaNemotronVLForEmbedding, SupportsCrossEncoding, SupportsScoreTemplate
):
    """llama-nemotron-rerank-vl: how well a passage answers a question."""

    supports_score_template = True
    score_type = "cross-encoder"

    hf_to_vllm_mapper = (
        WeightsMapper(orig_to_new_prefix={RANKING_PREFIX: ""})
        | LlamaNemotronVLForEmbedding.hf_to_vllm_mapper
    )

    def _init_pooler(self, vllm_config: VllmConfig, prefix: str) -> None:
        model_config = vllm_config.model_config
        self.score = ReplicatedLinear(
            model_config.get_hidden_size(),
            self.config.text_config.num_labels,
            bias=False,
            params_dtype=model_config.head_dtype,
            return_bias=False,
            prefix=maybe_prefix(prefix, "score"),
        )
        config = cast(PoolerConfig, model_config.pooler_config)
        self.pooler = DispatchPooler.for_seq_cls(config, classifier=self.score)

    @classmethod
    def get_score_template(cls, query: str, document: str) -> str:
        """The published prompt, without the token at its beginning.

        Args:
            query: The question.
            document: The passage, after a placeholder for each of its images.

        Raises:
            VLLMValidationError: The question is empty or has an image.
        """
        if not query.strip():
            raise VLLMValidationError("The question is empty.", parameter="query")
        if IMAGE_TOKEN in query:
            raise VLLMValidationError(
                f"The question must be text without {IMAGE_TOKEN}. Images belong to "
                "documents.",
                parameter="query",
            )
        images, passage = "", document
        while passage.startswith(IMAGE_TOKEN):
            images += f"{IMAGE_TOKEN} "
            passage = passage.removeprefix(IMAGE_TOKEN)
        return f"{images}question:{query} \n \n passage:{passage}"
