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
    RETRIEVAL_MODEL_TYPES,
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
    """Make vLLM serve the architectures with this package's models.

    vLLM calls it in each of its processes, sometimes more than once. It imports no
    model code. If this package does not work with the installed vLLM, checkpoints of
    these architectures are refused with a message. Other models are not affected, and
    the chat model does not need what the models that find and rank pages need.
    """
    if _is_checkpoint(Path()):
        # The interpreters that vLLM starts would have the folder first in their path,
        # and import a checkpoint's json.py.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    for retrieval, register_models in ((False, _register), (True, _register_retrieval)):
        installed = ""
        try:
            import vllm

            installed = vllm.__version__
            untested = _PACKAGE != "vllm" and not is_tested(installed)
            if untested and (sentence := refusal(installed, retrieval)):
                _refuse(sentence, retrieval)
            else:
                register_models()
        except Exception as error:  # an uncaught one would end every vLLM process
            said = f"{type(error).__name__}: {error}"
            _refuse(_sentence(installed, retrieval, said), retrieval)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of this architecture."""
    config = folder / "config.json"
    with contextlib.suppress(
        OSError, ValueError, LookupError, TypeError, RecursionError
    ):
        if config.is_file():
            with config.open("rb") as file:
                content = json.loads(file.read(_MOST_BYTES))
            served = {ARCHITECTURE, *RETRIEVAL_MODEL_TYPES}
            return not served.isdisjoint(content["architectures"])
    return False


def _register() -> None:
    import vllm
    from vllm.logger import init_logger
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from ..model_executor.models.config import (
        NemotronVLModelConfig,
        NemotronVLVideoModelConfig,
    )
    from ..transformers_utils.config import register_nemotron_vl_config

    if MODELS_CONFIG_MAP.get(ARCHITECTURE) is NemotronVLModelConfig:
        return
    logger = init_logger("vllm.plugins.nemotron_vl")
    register_nemotron_vl_config()
    for architecture, place, config in (
        (ARCHITECTURE, ":LlamaNemotronVLChatModel", NemotronVLModelConfig),
        (
            VIDEO_ARCHITECTURE,
            "_video:LlamaNemotronVLVideoChatModel",
            NemotronVLVideoModelConfig,
        ),
    ):
        _register_model(architecture, place, config)
    _register_renderer(TOKENIZER_MODE, "nemotron_vl", "NemotronVLRenderer")
    _register_renderer(
        VIDEO_TOKENIZER_MODE, "nemotron_vl_video", "NemotronVLVideoRenderer"
    )
    _register_tokenizer(ARCHITECTURE, CHAT_TEMPLATE)
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


def _register_retrieval() -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from ..model_executor.models.nemotron_vl_retrieval_config import (
        NemotronVLRetrievalModelConfig,
    )
    from ..transformers_utils.config import register_nemotron_vl_config
    from ..transformers_utils.configs.nemotron_vl_retrieval import (
        NemotronVLEmbedConfig,
        NemotronVLRerankConfig,
    )

    if MODELS_CONFIG_MAP.get(EMBED_ARCHITECTURE) is NemotronVLRetrievalModelConfig:
        return
    register_nemotron_vl_config(NemotronVLEmbedConfig, NemotronVLRerankConfig)
    for architecture, name in (
        (EMBED_ARCHITECTURE, "LlamaNemotronVLForEmbedding"),
        (RERANK_ARCHITECTURE, RERANK_ARCHITECTURE),
    ):
        place = f"_retrieval:{name}"
        _register_model(architecture, place, NemotronVLRetrievalModelConfig)
    mode, name = RETRIEVAL_TOKENIZER_MODE, "NemotronVLRetrievalRenderer"
    _register_renderer(mode, "nemotron_vl_retrieval", name)
    _register_tokenizer(EMBED_MODEL_TYPE, EMBED_TEMPLATE)
    _register_tokenizer(RERANK_MODEL_TYPE, None)


def _register_model(architecture: str, place: str, config: type) -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    ModelRegistry.register_model(architecture, f"{_MODEL}{place}")
    MODELS_CONFIG_MAP[architecture] = config


def _register_renderer(mode: str, file: str, name: str) -> None:
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    TokenizerRegistry.register(mode, "vllm.tokenizers.hf", "CachedHfTokenizer")
    RENDERER_REGISTRY.register(mode, f"{_PACKAGE}.renderers.{file}", name)


def _register_tokenizer(model_type: str, template: Path | None) -> None:
    from vllm.tokenizers.registry import _MODEL_TYPES_WITH_INCORRECT_TOKENIZER_CLASS
    from vllm.transformers_utils.chat_templates.registry import (
        register_chat_template_fallback_path,
    )

    # For the models in this set vLLM reads the tokenizer from its data files only.
    # AutoTokenizer would import the class that tokenizer_config.json names.
    _MODEL_TYPES_WITH_INCORRECT_TOKENIZER_CLASS.add(model_type)
    if template is not None:
        register_chat_template_fallback_path(model_type, template)


def refusal(vllm_version: str, retrieval: bool = False) -> str | None:
    """A message if this package cannot work with the installed vLLM.

    Reads vLLM's source files without importing them.

    Args:
        vllm_version: Such as ``0.33.0``, for the message.
        retrieval: Whether for the models that find and rank pages, or else for the
            chat model.

    Returns:
        ``None`` if vLLM has everything that these models use of it.
    """
    from .nemotron_vl_contract import missing

    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return _sentence(vllm_version, retrieval, "it is not installed")
    place = Path(spec.submodule_search_locations[0])
    if not (lacks := missing(place, retrieval=retrieval)):
        return None
    shown = ", ".join(lacks[:3]) + (f" and {len(lacks) - 3} more" * (len(lacks) > 3))
    return _sentence(vllm_version, retrieval, f"it lacks {shown}")


def _sentence(vllm_version: str, retrieval: bool, problem: str) -> str:
    models = " and ".join(RETRIEVAL_MODEL_TYPES) if retrieval else ARCHITECTURE
    return (
        f"vllm-nemotron-vl {plugin_version()} cannot serve {models} with vLLM "
        f'{vllm_version}: {problem}. Install "{tested_requirement()}".'
    )


def _refuse(sentence: str, retrieval: bool) -> None:
    """Refuse checkpoints of these architectures with a message.

    vLLM's in-tree model must not serve them instead: it runs the checkpoint's code.
    """
    import transformers

    # transformers 4 calls it PretrainedConfig.
    base = getattr(transformers, "PreTrainedConfig", None)
    base = base or transformers.PretrainedConfig  # type: ignore[attr-defined]

    for refused in RETRIEVAL_MODEL_TYPES.values() if retrieval else [ARCHITECTURE]:

        class RefusedConfig(base):  # type: ignore[misc, valid-type]
            model_type = refused

            @classmethod
            def from_dict(cls, *args, **kwargs):
                raise ValueError(sentence)

        transformers.AutoConfig.register(refused, RefusedConfig, exist_ok=True)
    logging.getLogger("vllm.plugins.nemotron_vl").error(sentence)
