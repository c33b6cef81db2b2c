# SPDX-License-Identifier: Apache-2.0
"""Entry point of the plugin group ``vllm.general_plugins``."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ARCHITECTURE = "Llama_Nemotron_Nano_VL"

# vLLM releases that the tests ran against: from the first, below the second.
TESTED_VLLM = ((0, 32), (0, 33))

# Selects our renderer; the tokenizer itself is the one of mode "hf".
TOKENIZER_MODE = "nemotron_vl"

# "vllm_nemotron_vl", or "vllm" where the tree lies over a vLLM checkout.
_PACKAGE = __name__.removesuffix(".plugins.nemotron_vl")
_MODEL = f"{_PACKAGE}.model_executor.models.nemotron_vl"


def register() -> None:
    """Make vLLM serve the architecture with this package's model.

    vLLM calls it in each of its processes. It imports no model code and may
    be called again. Without a usable vLLM, or with a release that was not
    tested, it logs one line that says so.
    """
    try:
        import vllm
        from vllm import ModelRegistry
        from vllm.logger import init_logger
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
        from vllm.renderers.registry import RENDERER_REGISTRY
        from vllm.tokenizers.registry import (
            _MODEL_TYPES_WITH_INCORRECT_TOKENIZER_CLASS,
            TokenizerRegistry,
        )
        from vllm.transformers_utils.chat_templates.registry import (
            register_chat_template_fallback_path,
        )

        from ..model_executor.models.config import NemotronVLModelConfig
        from ..transformers_utils.config import register_nemotron_vl_config
    except (ImportError, AttributeError) as error:
        import logging

        logging.getLogger(__name__).error(
            "vllm-nemotron-vl %s needs vLLM %s, which cannot be used here: %s",
            plugin_version(),
            tested_range(),
            error,
        )
        return

    if MODELS_CONFIG_MAP.get(ARCHITECTURE) is NemotronVLModelConfig:
        return
    logger = init_logger("vllm.plugins.nemotron_vl")
    register_nemotron_vl_config()
    ModelRegistry.register_model(ARCHITECTURE, f"{_MODEL}:LlamaNemotronVLChatModel")
    MODELS_CONFIG_MAP[ARCHITECTURE] = NemotronVLModelConfig
    # vLLM's list of models whose tokenizer is read from its data files alone;
    # AutoTokenizer would import a class that tokenizer_config.json names.
    _MODEL_TYPES_WITH_INCORRECT_TOKENIZER_CLASS.add(ARCHITECTURE)
    TokenizerRegistry.register(
        TOKENIZER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer"
    )
    RENDERER_REGISTRY.register(
        TOKENIZER_MODE, f"{_PACKAGE}.renderers.nemotron_vl", "NemotronVLRenderer"
    )
    templates = Path(__file__).parents[1] / "transformers_utils/chat_templates"
    register_chat_template_fallback_path(
        ARCHITECTURE, templates / "template_nemotron_vl.jinja"
    )
    if not is_tested(vllm.__version__):
        logger.warning(
            "vllm-nemotron-vl %s was tested with vLLM %s, not with the installed %s.",
            plugin_version(),
            tested_range(),
            vllm.__version__,
        )
    logger.info(
        "vllm-nemotron-vl %s serves the architecture %s with %s.",
        plugin_version(),
        ARCHITECTURE,
        _MODEL,
    )


def plugin_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("vllm-nemotron-vl")
    except PackageNotFoundError:
        return "(not installed)"


def tested_range() -> str:
    """The tested vLLM releases as a requirement, such as ``>=0.32,<0.33``."""
    first, end = (".".join(map(str, release)) for release in TESTED_VLLM)
    return f">={first},<{end}"


def is_tested(vllm_version: str) -> bool:
    """Whether a vLLM version lies in the tested range."""
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(vllm_version).release
    except InvalidVersion:
        return False
    first, end = TESTED_VLLM
    return first <= release < end
