# SPDX-License-Identifier: Apache-2.0
"""The plugin: its entry point in the group ``vllm.general_plugins``."""

import contextlib
import json
import logging
import os
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path

from ..config.nemotron_vl_names import (
    ARCHITECTURE,
    CHAT_TEMPLATE,
    EMBED_ARCHITECTURE,
    EMBED_MODEL_TYPE,
    EMBED_TEMPLATE,
    RERANK_ARCHITECTURE,
    RERANK_MODEL_TYPE,
    RETRIEVAL_TOKENIZER_MODE,
    TOKENIZER_MODE,
    VIDEO_ARCHITECTURE,
    VIDEO_TOKENIZER_MODE,
    is_tested,
    plugin_version,
    tested_range,
    tested_requirement,
)

# "vllm_nemotron_vl", or "vllm" where the tree lies over a vLLM checkout.
_PACKAGE = __name__.removesuffix(".plugins.nemotron_vl")
_MOST_BYTES = 1 << 23  # of config.json
_MODEL = f"{_PACKAGE}.model_executor.models.nemotron_vl"


def register() -> None:
    """Make vLLM serve the architecture with this package's model.

    vLLM calls it in each of its processes, sometimes more than once. It imports no
    model code. If this package does not work with the installed vLLM, checkpoints of
    this architecture are refused with a message. Other models are not affected.
    """
    if _is_checkpoint(Path()):
        # The interpreters that vLLM starts would have the folder first in their path,
        # and import a checkpoint's json.py.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    installed = ""
    try:
        import vllm

        installed = vllm.__version__
        untested = _PACKAGE != "vllm" and not is_tested(installed)
        if untested and (sentence := refusal(installed)):
            return _refuse(sentence)
        _register()
    except Exception as error:  # an uncaught one would end every vLLM process
        _refuse(_sentence(installed, f"{type(error).__name__}: {error}"))


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of this architecture."""
    config = folder / "config.json"
    with contextlib.suppress(
        OSError, ValueError, LookupError, TypeError, RecursionError
    ):
        if config.is_file():
            with config.open("rb") as file:
                content = json.loads(file.read(_MOST_BYTES))
            served = {ARCHITECTURE, EMBED_ARCHITECTURE, RERANK_ARCHITECTURE}
            return not served.isdisjoint(content["architectures"])
    return False


def _register() -> None:
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

    from ..model_executor.models.config import (
        NemotronVLModelConfig,
        NemotronVLRetrievalModelConfig,
        NemotronVLVideoModelConfig,
    )
    from ..transformers_utils.config import register_nemotron_vl_config

    if MODELS_CONFIG_MAP.get(ARCHITECTURE) is NemotronVLModelConfig:
        return
    logger = init_logger("vllm.plugins.nemotron_vl")
    register_nemotron_vl_config()
    rerank = f"_retrieval:{RERANK_ARCHITECTURE}"
    for architecture, place, config in (
        (ARCHITECTURE, ":LlamaNemotronVLChatModel", NemotronVLModelConfig),
        (
            VIDEO_ARCHITECTURE,
            "_video:LlamaNemotronVLVideoChatModel",
            NemotronVLVideoModelConfig,
        ),
        (
            EMBED_ARCHITECTURE,
            "_retrieval:LlamaNemotronVLForEmbedding",
            NemotronVLRetrievalModelConfig,
        ),
        (RERANK_ARCHITECTURE, rerank, NemotronVLRetrievalModelConfig),
    ):
        ModelRegistry.register_model(architecture, f"{_MODEL}{place}")
        MODELS_CONFIG_MAP[architecture] = config
    # For the models in this set vLLM reads the tokenizer from its data files only.
    # AutoTokenizer would import the class that tokenizer_config.json names.
    _MODEL_TYPES_WITH_INCORRECT_TOKENIZER_CLASS.update(
        (ARCHITECTURE, EMBED_MODEL_TYPE, RERANK_MODEL_TYPE)
    )
    for mode, file, name in (
        (TOKENIZER_MODE, "nemotron_vl", "NemotronVLRenderer"),
        (VIDEO_TOKENIZER_MODE, "nemotron_vl_video", "NemotronVLVideoRenderer"),
        (
            RETRIEVAL_TOKENIZER_MODE,
            "nemotron_vl_retrieval",
            "NemotronVLRetrievalRenderer",
        ),
    ):
        TokenizerRegistry.register(mode, "vllm.tokenizers.hf", "CachedHfTokenizer")
        RENDERER_REGISTRY.register(mode, f"{_PACKAGE}.renderers.{file}", name)
    register_chat_template_fallback_path(ARCHITECTURE, CHAT_TEMPLATE)
    register_chat_template_fallback_path(EMBED_MODEL_TYPE, EMBED_TEMPLATE)
    # One warning, not one for each process.
    if not is_tested(vllm.__version__) and parent_process() is None:
        logger.warning(
            "vllm-nemotron-vl %s was tested with vLLM %s, not with the installed "
            "%s, which has everything that it imports from vLLM.",
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


def refusal(vllm_version: str) -> str | None:
    """A message if this package cannot work with the installed vLLM.

    Reads vLLM's source files without importing them.

    Args:
        vllm_version: Such as ``0.33.0``, for the message.

    Returns:
        ``None`` if vLLM has everything that this package uses of it.
    """
    from .nemotron_vl_contract import missing

    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return _sentence(vllm_version, "it is not installed")
    if not (lacks := missing(Path(spec.submodule_search_locations[0]))):
        return None
    shown = ", ".join(lacks[:3]) + (f" and {len(lacks) - 3} more" * (len(lacks) > 3))
    return _sentence(vllm_version, f"it lacks {shown}")


def _sentence(vllm_version: str, problem: str) -> str:
    return (
        f"vllm-nemotron-vl {plugin_version()} cannot serve {ARCHITECTURE} with vLLM "
        f'{vllm_version}: {problem}. Install "{tested_requirement()}".'
    )


def _refuse(sentence: str) -> None:
    """Refuse checkpoints of this architecture with a message.

    vLLM's in-tree model must not serve them instead: it runs the checkpoint's code.
    """
    import transformers

    # transformers 4 calls it PretrainedConfig.
    base = getattr(transformers, "PreTrainedConfig", None)
    base = base or transformers.PretrainedConfig  # type: ignore[attr-defined]

    for refused in (ARCHITECTURE, EMBED_MODEL_TYPE, RERANK_MODEL_TYPE):

        class RefusedConfig(base):  # type: ignore[misc, valid-type]
            model_type = refused

            @classmethod
            def from_dict(cls, *args, **kwargs):
                raise ValueError(sentence)

        transformers.AutoConfig.register(refused, RefusedConfig, exist_ok=True)
    logging.getLogger("vllm.plugins.nemotron_vl").error(sentence)
