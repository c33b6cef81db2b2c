# SPDX-License-Identifier: Apache-2.0
"""Makes transformers and vLLM read these checkpoints natively."""

from transformers import AutoConfig
from vllm.transformers_utils.config import _CONFIG_ATTRS_MAPPING

from .configs.nemotron_vl import NemotronVLConfig
from .configs.nemotron_vl_retrieval import NemotronVLEmbedConfig, NemotronVLRerankConfig


def register_nemotron_vl_config() -> None:
    """Register the configurations, and `llm_config` as vLLM's `text_config`."""
    _CONFIG_ATTRS_MAPPING.setdefault("llm_config", "text_config")
    for config in (NemotronVLConfig, NemotronVLEmbedConfig, NemotronVLRerankConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
