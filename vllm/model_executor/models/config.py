# SPDX-License-Identifier: Apache-2.0
"""vLLM's hook for checking and completing this model's configuration."""

from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from ...config.nemotron_vl import EncoderConfig
from ...config.nemotron_vl_cpu import slow_dtype
from ...plugins.nemotron_vl import TOKENIZER_MODE
from ...transformers_utils.configs.nemotron_vl_checks import check_servable

logger = init_logger("vllm.model_executor.models.config")


class NemotronVLModelConfig(VerifyAndUpdateConfig):
    """Refuses what cannot be served and selects our renderer."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Called by vLLM when the checkpoint's configuration has been read.

        Raises:
            ValueError: Names the key of the checkpoint's configuration.
        """
        check_servable(model_config.hf_config, model_config.hf_image_processor_config)
        if model_config.tokenizer_mode in ("auto", "hf"):
            model_config.tokenizer_mode = TOKENIZER_MODE

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Check ``additional_config`` and the ranks before a process is started.

        Raises:
            ValueError: Names the setting, or the size that cannot be shared out.
        """
        from .nemotron_vl_layout import indivisible

        EncoderConfig.from_vllm_config(vllm_config)
        model_config = vllm_config.model_config
        problems = indivisible(
            model_config.hf_config,
            vllm_config.parallel_config.tensor_parallel_size,
            model_config.get_multimodal_config().mm_encoder_tp_mode == "data",
        )
        if problems:
            raise ValueError(" ".join(problems))
        slow = slow_dtype(str(model_config.dtype).removeprefix("torch."))
        if slow and current_platform.is_cpu():
            logger.warning(slow)
