# SPDX-License-Identifier: Apache-2.0
"""The models that find and rank pages: SigLIP, pixel shuffle, MLP, bidirectional Llama.

Built on vLLM's InternVL, SigLIP and Llama models; this file holds only what differs
from the chat model.
"""

from collections.abc import Iterable, Iterator
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
from .nemotron_vl_lora import renamed
from .nemotron_vl_names import leave_out, resolve_patterns
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
)
from .nemotron_vl_reload import is_whole
from .nemotron_vl_retrieval_config import checkpoint_settings

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

    tensor_prefix = ""  # of all parts, in the checkpoint
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            f"language_model.{name}.": f"language_model.model.{name}."
            for name in ("layers", "embed_tokens", "norm")
        }
        | {
            f"vision_model.{name}.": f"vision_model.vision_model.{name}."
            for name in ("encoder", "embeddings", "post_layernorm")
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.lora_config is not None:
            adapted = encoder_adapters(vllm_config)
            self.hf_to_vllm_mapper |= WeightsMapper(
                orig_to_new_regex=renamed(
                    [self.tensor_prefix + name for name in _layers(self, adapted)],
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
            names = [self.tensor_prefix + name for name in _layers(self, True)]
            mapper = type(self).hf_to_vllm_mapper
            resolve_patterns(
                quant_config,
                dict(zip(names, mapper.apply_list(names), strict=True)),
            )
        super()._patch_quant_config(config, quant_config)
        if quant_config is not None:
            # Llama's own head, which the checkpoint lacks and nothing uses.
            leave_out(quant_config, "language_model.score")

    @classmethod
    def _encoder_layers(cls, config: PreTrainedConfig) -> list[str]:
        blocks = range(config.vision_config.num_hidden_layers)
        inner = ("self_attn.qkv_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
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

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint or a part of one. Cached tiles are of the old weights."""
        if self.tile_reuse is not None:
            self.tile_reuse.clear()
        whole = is_whole(weights, self.training, self._load_format)
        # Those that vLLM computes while it loads are not there yet.
        scales = [n for n, _ in self.named_parameters() if n.endswith("weight_scale")]
        loaded = super().load_weights(weights)
        # vLLM does not notice scales that a quantised checkpoint lacks.
        for name in scales:
            if whole and name not in loaded and ".score." not in name:
                raise ValueError(
                    f"The checkpoint has no {name}. Its quantization_config must "
                    "list the layers that are not quantised."
                )
        self.eval()  # most of vLLM's loaders call it, too
        return loaded


def _layers(model: LlamaNemotronVLForEmbedding, encoder: bool) -> Iterator[str]:
    """Names in the checkpoint of the layers that adapters may have.

    Args:
        model: Has the configuration.
        encoder: Whether they include the tower and the connector.
    """
    for number in range(model.config.text_config.num_hidden_layers):
        for name in ("q", "k", "v", "o"):
            yield f"language_model.layers.{number}.self_attn.{name}_proj"
        for name in ("gate", "up", "down"):
            yield f"language_model.layers.{number}.mlp.{name}_proj"
    if not encoder:
        return
    yield from ("mlp1.1", "mlp1.3")
    for number in range(model.config.vision_config.num_hidden_layers):
        block = f"{TOWER_BLOCKS}.{number}"
        for name in ("q", "k", "v", "out"):
            yield f"{block}.self_attn.{name}_proj"
        yield from (f"{block}.mlp.fc1", f"{block}.mlp.fc2")


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

    tensor_prefix = "model."
    hf_to_vllm_mapper = (
        WeightsMapper(orig_to_new_prefix={tensor_prefix: ""})
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

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """See the base class."""
        loaded = super().load_weights(weights)
        # vLLM's language model has a head of its own, which the checkpoint lacks and
        # nothing uses.
        for name, parameter in self.language_model.named_parameters():
            if name.startswith("score.") and f"language_model.{name}" not in loaded:
                parameter.data.zero_()
                loaded.add(f"language_model.{name}")
        return loaded

    @classmethod
    def get_score_template(cls, query: str, document: str) -> str:
        """The published prompt, without the token at its beginning.

        Args:
            query: The question.
            document: The passage, after a placeholder for each of its images.

        Raises:
            VLLMValidationError: The question has an image.
        """
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
