# SPDX-License-Identifier: Apache-2.0
"""The models that find and rank pages: SigLIP, pixel shuffle, MLP, bidirectional Llama.

vLLM's in-tree classes with this package's processing of images; this file holds only
what differs.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Any, cast

import torch
from transformers import PreTrainedConfig
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsQuant,
    SupportsScoreTemplate,
)
from vllm.model_executor.models.nemotron_vl import (
    LlamaNemotronVLForEmbedding as InTreeForEmbedding,
)
from vllm.model_executor.models.nemotron_vl import (
    LlamaNemotronVLForSequenceClassification as InTreeForSequenceClassification,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItem
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

from ...config.nemotron_vl import EncoderConfig
from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...config.nemotron_vl_options import encoder_adapters
from ...multimodal.nemotron_vl_embeddings import EMBEDS
from ...transformers_utils.configs.nemotron_vl_retrieval import NemotronVLEmbedConfig
from ...transformers_utils.processors.nemotron_vl_retrieval import (
    NemotronVLRetrievalProcessor,
)
from ...transformers_utils.processors.nemotron_vl_tiling import image_settings
from .nemotron_vl_graphs import DIGESTS, PIXELS
from .nemotron_vl_lora import refused
from .nemotron_vl_precision import keep_encoder_precision
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
)
from .nemotron_vl_reuse import make_tile_reuse

logger = init_logger(__name__)

NO_PROCESSOR_CONFIG = (
    "The checkpoint has no processor_config.json, so an image has one tile. The "
    "published ones have 6: --mm-processor-kwargs '{\"max_dynamic_patch\": 6}'."
)


class NemotronVLRetrievalProcessingInfo(NemotronVLProcessingInfo):
    """Settings come from ``processor_config.json``, then from ``config.json``."""

    processor_class = NemotronVLRetrievalProcessor

    def get_hf_config(self) -> Any:
        return self.ctx.get_hf_config(NemotronVLEmbedConfig)

    @cached_property
    def _processor_config(self) -> dict[str, Any]:
        model = self.ctx.model_config
        name = "processor_config.json"
        found = get_hf_file_to_dict(name, model.model, model.revision)
        if found is None:
            found = {}
            logger.warning_once(NO_PROCESSOR_CONFIG)
        for key, published in (
            ("min_dynamic_patch", "min_input_tiles"),
            ("max_dynamic_patch", "max_input_tiles"),
        ):
            if published in found:
                found[key] = found[published]
        return found

    def checkpoint_settings(self) -> dict[str, Any]:
        config = vars(self.get_hf_config())
        # One tile by default, as in vLLM's in-tree model. It does not read
        # `max_input_tiles` and `use_thumbnail` of config.json either.
        config = {k: v for k, v in config.items() if k != "use_thumbnail"}
        return {"max_dynamic_patch": 1} | image_settings(self._processor_config, config)


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLMultiModalProcessor,
    info=NemotronVLRetrievalProcessingInfo,
    dummy_inputs=NemotronVLDummyInputsBuilder,
)
class LlamaNemotronVLForEmbedding(  # type: ignore[misc]
    InTreeForEmbedding, SupportsQuant
):
    """llama-nemotron-embed-vl: an embedding of a text, an image or both.

    Equal tiles are encoded once, and a bounded number of tiles at once.
    """

    # vLLM caches a model's flags until the model's own file changes. In-tree's flag for
    # pixels that the device normalises stays: in 0.31 these models have none.
    is_pooling_model = True
    supports_tower_connector_lora = True
    tensor_prefix = ""  # of all parts, in the checkpoint

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        encoder_config = EncoderConfig.from_vllm_config(vllm_config)
        self.max_encoder_tiles = encoder_config.max_encoder_tiles
        self.tile_reuse = None
        adapted = encoder_adapters(vllm_config)
        if vllm_config.lora_config is not None:
            layers = (self.tensor_prefix + name for name in _layers(self, adapted))
            self.hf_to_vllm_mapper |= WeightsMapper(
                orig_to_new_regex=refused(layers, adapted)
            )
        if adapted:  # as in the chat model
            self.max_encoder_tiles = sys.maxsize
            return
        self.tile_reuse = make_tile_reuse(
            vllm_config,
            (self.num_image_token, self.config.text_config.hidden_size),
            lambda: chain(self.vision_model.parameters(), self.mlp1.parameters()),
        )

    def _patch_quant_config(
        self, config: PreTrainedConfig, quant_config: QuantizationConfig | None
    ) -> None:
        # vLLM's model calls this before it builds the parts.
        super()._patch_quant_config(config, quant_config)
        if quant_config is not None:
            keep_encoder_precision(quant_config)

    def _init_mlp1(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        connector: Any = super()._init_mlp1(config, *args, **kwargs)
        # vLLM applies adapters to its own layers only.
        for place in (1, 3):
            linear = connector[place]
            connector[place] = ReplicatedLinear(
                linear.in_features, linear.out_features, return_bias=False
            )
        return connector

    def get_mm_lora_token_counts(
        self,
        *,
        modality: str,
        mm_kwargs: MultiModalKwargsItem | None,
        num_mm_embeds: int,
    ) -> tuple[int, int | None]:
        """Tokens in the tower and in the connector for a number of embeddings."""
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return num_mm_embeds // self.num_image_token * patches, num_mm_embeds

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Embeddings of images, ``(tokens, hidden_size)`` for each.

        Args:
            kwargs: The fields of vLLM's InternVL model, and ``tile_digests`` for
                `TileReuse`. Without digests all tiles are encoded.
        """
        if (embeds := kwargs.get(EMBEDS)) is not None:
            # InternVL's check refuses a batch of images with different lengths.
            return cast(MultiModalEmbeddings, embeds)
        digests = cast(torch.Tensor | None, kwargs.get(DIGESTS))
        images: Any = self._parse_and_validate_image_input(**kwargs)
        if images is None:
            return []
        pixels = images[PIXELS]
        if digests is None or self.tile_reuse is None:
            features = self._encode_tiles(pixels)
        else:
            features = self.tile_reuse(self._encode_tiles, pixels, digests)
        return [x.flatten(0, 1) for x in features.split(images["num_patches"].tolist())]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint or a part of one. Cached tiles are of the old weights."""
        if self.tile_reuse is not None:
            self.tile_reuse.clear()
        return super().load_weights(weights)

    def _encode_tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        parts = pixels.split(cast(int, self.max_encoder_tiles))
        return torch.cat([self.extract_feature(part) for part in parts])


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
        block = f"vision_model.vision_model.encoder.layers.{number}"
        for name in ("q", "k", "v", "out"):
            yield f"{block}.self_attn.{name}_proj"
        yield from (f"{block}.mlp.fc1", f"{block}.mlp.fc2")


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLMultiModalProcessor,
    info=NemotronVLRetrievalProcessingInfo,
    dummy_inputs=NemotronVLDummyInputsBuilder,
)
class LlamaNemotronVLForSequenceClassification(  # type: ignore[misc]
    LlamaNemotronVLForEmbedding, InTreeForSequenceClassification, SupportsScoreTemplate
):
    """llama-nemotron-rerank-vl: how well a passage answers a question."""

    is_pooling_model = True
    supports_tower_connector_lora = True
    supports_score_template = True
    score_type = "cross-encoder"
    tensor_prefix = "model."

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
