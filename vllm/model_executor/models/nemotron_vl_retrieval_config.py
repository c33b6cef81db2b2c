# SPDX-License-Identifier: Apache-2.0
"""vLLM's hook for the models that find and rank pages."""

from typing import Any, cast

from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import LlamaNemotronVLConfig

from ...config.nemotron_vl import check_settings
from ...config.nemotron_vl_names import RETRIEVAL_MODEL_TYPES, RETRIEVAL_TOKENIZER_MODE
from ...config.nemotron_vl_options import check_adapters
from .config import check_graphs, prepare, select_renderer


class NemotronVLRetrievalModelConfig(LlamaNemotronVLConfig):
    """vLLM's hook, with checks."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """vLLM calls this after it has read the checkpoint's configuration.

        Raises:
            ValueError: Names the key of the checkpoint's configuration.
        """
        prepare(model_config, RETRIEVAL_MODEL_TYPES[model_config.architecture])
        cast(Any, model_config.hf_config).check_servable()
        select_renderer(model_config, RETRIEVAL_TOKENIZER_MODE)
        LlamaNemotronVLConfig.verify_and_update_model_config(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Check ``additional_config`` and options of adapters.

        Raises:
            ValueError: Names the setting or the option.
        """
        check_settings(vllm_config)
        check_graphs(vllm_config)
        check_adapters(vllm_config)
