# SPDX-License-Identifier: Apache-2.0
"""Names of this model in vLLM, and the releases of vLLM that it is tested with."""

from importlib.metadata import PackageNotFoundError, version

# Checkpoints have the same name as architecture and as model_type.
ARCHITECTURE = MODEL_TYPE = "Llama_Nemotron_Nano_VL"

# vLLM's --tokenizer-mode that selects our renderer. The tokenizer is that of "hf".
TOKENIZER_MODE = "nemotron_vl"

# The tests run on these releases of vLLM: from the first to below the second.
TESTED_VLLM = ((0, 31), (0, 34))


def plugin_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("vllm-nemotron-vl")
    except PackageNotFoundError:
        return "(not installed)"


def tested_range() -> str:
    """The tested releases of vLLM as a requirement, such as ``>=0.32,<0.33``."""
    first, end = (".".join(map(str, release)) for release in TESTED_VLLM)
    return f">={first},<{end}"


def is_tested(vllm_version: str) -> bool:
    """Whether a version of vLLM is in the tested range."""
    from packaging.version import InvalidVersion, Version

    try:
        release = Version(vllm_version).release
    except InvalidVersion:
        return False
    first, end = TESTED_VLLM
    return first <= release < end
