# SPDX-License-Identifier: Apache-2.0
"""Makes transformers and vLLM read these checkpoints natively."""

from transformers import AutoConfig, PreTrainedConfig
from vllm.transformers_utils.config import _CONFIG_ATTRS_MAPPING

from .configs.nemotron_vl import NemotronVLConfig


def register_nemotron_vl_config(
    *configs: type[PreTrainedConfig],
) -> None:
    """Register configurations, and `llm_config` as vLLM's `text_config`.

    Args:
        configs: By default that of the chat model.
    """
    _CONFIG_ATTRS_MAPPING.setdefault("llm_config", "text_config")
    for config in configs or (NemotronVLConfig,):
        AutoConfig.register(config.model_type, config, exist_ok=True)
