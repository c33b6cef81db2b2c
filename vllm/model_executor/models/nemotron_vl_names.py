# SPDX-License-Identifier: Apache-2.0
"""Names of layers: those of the checkpoint and those of vLLM.

The checkpoint's names are in its tensors, in its quantisation configuration and in
LoRA adapters made for it. The first two are mapped to vLLM's names here, the last in
`nemotron_vl_lora`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from operator import contains, eq

from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.quantization.online.base import (
    OnlineQuantizationConfig,
)
from vllm.model_executor.layers.quantization.quark.quark import QuarkConfig
from vllm.model_executor.models.utils import WeightsMapper

from .nemotron_vl_layout import TOWER, Config, tower_tensors

HF_TO_VLLM = WeightsMapper(
    orig_to_new_prefix={
        # The class tokens of C-RADIO's summary, which this model does not use.
        TOWER + "summary_idxs": None,
        TOWER + "model.blocks.": "vision_model.model.encoder.layers.",
        TOWER + "model.": "vision_model.model.",
    }
)


def _has_components(name: str, part: str) -> bool:
    return f".{part}." in f".{name}."


# Attributes of vLLM's configurations that list layers to leave unquantised, and how
# an entry is compared with a name, besides patterns.
_IGNORE_LISTS: dict[str, Callable[[str, str], bool]] = {
    "ignore": eq,  # compressed-tensors
    "ignored_layers": eq,  # FP8, and all methods that quantise while loading
    "exclude_modules": contains,  # ModelOpt
    "modules_to_not_convert": contains,  # AWQ
    "skip_modules": _has_components,  # torchao
}


def tower_layers(config: Config) -> dict[str, str]:
    """Layers of the tower in the checkpoint, with vLLM's names."""
    names = [name.rpartition(".")[0] for name in tower_tensors(config)]
    return dict(zip(names, HF_TO_VLLM.apply_list(names), strict=True))


def resolve_patterns(
    quant_config: QuantizationConfig, renamed: Mapping[str, str]
) -> None:
    """Make the patterns of a quantisation configuration match.

    vLLM renames the entries of a configuration by the prefixes of
    `HF_TO_VLLM`. A pattern such as ``*attn.qkv`` or ``re:...`` does not start
    with one of them and stays as it is. It is matched here with the names of
    the checkpoint, and vLLM's names of all matching layers are added.

    Args:
        quant_config: vLLM's configuration; changed in place.
        renamed: Names of layers in the checkpoint, with vLLM's names.
    """
    nested = getattr(quant_config, "online_quantization_config", None)
    if isinstance(nested, OnlineQuantizationConfig):
        resolve_patterns(nested, renamed)
    for attribute, same in _IGNORE_LISTS.items():
        if patterns := getattr(quant_config, attribute, None):
            found = _matches(patterns, renamed, same)
            # A new list: for --quantization fp8, all engines share vLLM's list.
            setattr(quant_config, attribute, [*patterns, *found])
    schemes = getattr(quant_config, "target_scheme_map", {})  # compressed-tensors
    for pattern in [*schemes]:
        for name in _matches([pattern], renamed, eq):
            schemes.setdefault(name, schemes[pattern])
    if isinstance(quant_config, QuarkConfig):
        settings = quant_config.quant_config
        if excluded := settings.get("exclude"):
            settings["exclude"] = [*excluded, *_matches(excluded, renamed, eq)]


def _matches(
    patterns: Iterable[str],
    renamed: Mapping[str, str],
    same: Callable[[str, str], bool],
) -> list[str]:
    def match(pattern: str, name: str) -> bool:
        if pattern.startswith("re:"):
            return re.match(pattern[3:], name) is not None
        return fnmatchcase(name, pattern) or same(name, pattern)

    return [
        new
        for old, new in renamed.items()
        if any(match(pattern, old) for pattern in patterns)
    ]
