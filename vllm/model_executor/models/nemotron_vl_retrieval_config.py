# SPDX-License-Identifier: Apache-2.0
"""vLLM's hook for the models that find and rank pages."""

from typing import Any, cast

from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import LlamaNemotronVLConfig
from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

from ...config.nemotron_vl_names import RETRIEVAL_MODEL_TYPES, RETRIEVAL_TOKENIZER_MODE
from .config import check_engine, prepare, select_renderer

logger = init_logger(__name__)

NO_PROCESSOR_CONFIG = (
    "The checkpoint has no processor_config.json, so an image has one tile. The "
    "published ones have 6: --mm-processor-kwargs '{\"max_dynamic_patch\": 6}'."
)


def checkpoint_settings(model_config: ModelConfig) -> dict[str, Any]:
    """How ``processor_config.json``, then ``config.json``, say that images are cut."""
    from ...transformers_utils.processors.nemotron_vl_tiling import image_settings

    name = "processor_config.json"
    found = get_hf_file_to_dict(name, model_config.model, model_config.revision)
    if found is None:
        found = {}
        logger.warning_once(NO_PROCESSOR_CONFIG)
    for key, published in (
        ("min_dynamic_patch", "min_input_tiles"),
        ("max_dynamic_patch", "max_input_tiles"),
    ):
        if published in found:
            found[key] = found[published]
    # One tile by default, as in vLLM's in-tree model. It does not read
    # `max_input_tiles` and `use_thumbnail` of config.json either.
    keys = vars(model_config.hf_config).items()
    config = {key: value for key, value in keys if key != "use_thumbnail"}
    return {"max_dynamic_patch": 1} | image_settings(found, config)


class NemotronVLRetrievalModelConfig(LlamaNemotronVLConfig):
    """vLLM's hook, with checks."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """vLLM calls this after it has read the checkpoint's configuration.

        Raises:
            ValueError: Names the key of the checkpoint's configuration.
        """
        prepare(model_config, RETRIEVAL_MODEL_TYPES[model_config.architecture])
        config = cast(Any, model_config.hf_config)
        config.check_servable()
        # A ranking model has its head beside the Llama, not in it.
        config.llm_config.architectures = ["LlamaBidirectionalModel"]
        select_renderer(model_config, RETRIEVAL_TOKENIZER_MODE)
        if model_config.pooler_config is None:
            raise ValueError(
                f"{model_config.architecture} embeds or ranks, and generates no text: "
                "leave out --runner generate."
            )
        LlamaNemotronVLConfig.verify_and_update_model_config(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """vLLM calls this before it starts the engine's processes.

        Raises:
            ValueError: As of `check_engine`.
        """
        check_engine(vllm_config, checkpoint_settings)
