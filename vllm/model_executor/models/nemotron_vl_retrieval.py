# SPDX-License-Identifier: Apache-2.0
"""The models that find and rank pages: SigLIP, pixel shuffle, MLP, bidirectional Llama.

vLLM's in-tree classes with this package's processing of images; this file holds only
what differs.
"""

from functools import cached_property
from typing import Any

from vllm.model_executor.models.interfaces import SupportsScoreTemplate
from vllm.model_executor.models.nemotron_vl import (
    LlamaNemotronVLForEmbedding as InTreeForEmbedding,
)
from vllm.model_executor.models.nemotron_vl import (
    LlamaNemotronVLForSequenceClassification as InTreeForSequenceClassification,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...transformers_utils.configs.nemotron_vl_retrieval import NemotronVLEmbedConfig
from ...transformers_utils.processors.nemotron_vl_retrieval import (
    NemotronVLRetrievalProcessor,
)
from ...transformers_utils.processors.nemotron_vl_tiling import image_settings
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
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
        found = get_hf_file_to_dict(name, model.model, model.revision) or {}
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
class LlamaNemotronVLForEmbedding(InTreeForEmbedding):
    """llama-nemotron-embed-vl: an embedding of a text, an image or both."""

    # vLLM caches a model's flags until the model's own file changes.
    is_pooling_model = True
    supports_mm_device_do_normalize = True


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLMultiModalProcessor,
    info=NemotronVLRetrievalProcessingInfo,
    dummy_inputs=NemotronVLDummyInputsBuilder,
)
class LlamaNemotronVLForSequenceClassification(
    InTreeForSequenceClassification, SupportsScoreTemplate
):
    """llama-nemotron-rerank-vl: how well a passage answers a question."""

    is_pooling_model = True
    supports_mm_device_do_normalize = True
    supports_score_template = True
    score_type = "cross-encoder"

    @classmethod
    def get_score_template(cls, query: str, document: str) -> str:
        """The published prompt, without the token at its beginning.

        Args:
            query: The question.
            document: The passage, with a placeholder for each of its images.
        """
        images = f"{IMAGE_TOKEN} " * document.count(IMAGE_TOKEN)
        passage = document.replace(IMAGE_TOKEN, "")
        return f"{images}question:{query} \n \n passage:{passage}"
