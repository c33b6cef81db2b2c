# SPDX-License-Identifier: Apache-2.0
"""Makes transformers and vLLM read ``Llama_Nemotron_Nano_VL`` natively."""

from transformers import AutoConfig
from vllm.transformers_utils.config import _CONFIG_ATTRS_MAPPING

from .configs.nemotron_vl import NemotronVLConfig


def register_nemotron_vl_config() -> None:
    """Register `NemotronVLConfig`, and `llm_config` as vLLM's `text_config`."""
    _CONFIG_ATTRS_MAPPING.setdefault("llm_config", "text_config")
    AutoConfig.register(NemotronVLConfig.model_type, NemotronVLConfig, exist_ok=True)
