# SPDX-License-Identifier: Apache-2.0
"""Which layers of a quantised checkpoint are quantised, by their own names.

vLLM renames the entries of a quantisation configuration by the prefixes of the
model's weight mapper. A pattern has no such prefix, so it is matched here under
the names that the checkpoint has, and what it matches is listed in full.
"""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.quantization.online.base import (
    OnlineQuantizationConfig,
)

# Attributes of vLLM's configurations that list modules to leave alone, and
# whether a part of a name is enough.
_IGNORE_LISTS = {
    "ignore": False,  # compressed-tensors
    "ignored_layers": False,  # FP8, and all methods that quantise while loading
    "exclude_modules": True,  # ModelOpt
    "modules_to_not_convert": True,  # AWQ
}

_FULL_PRECISION = ["vision_model.*", "mlp1.*"]


def resolve_names(quant_config: QuantizationConfig, renamed: Mapping[str, str]) -> None:
    """Make the patterns of a configuration match the checkpoint's names.

    A checkpoint that is quantised while it is loaded (``--quantization fp8``)
    keeps its tower and connector unless the user gives an ignore list or
    targets: reading small print takes their full precision.

    Args:
        quant_config: vLLM's configuration; changed in place.
        renamed: Names of linear layers in the checkpoint, with vLLM's names.
    """
    online = getattr(quant_config, "online_quantization_config", None)
    if isinstance(online, OnlineQuantizationConfig):
        resolve_names(online, renamed)
    if isinstance(quant_config, OnlineQuantizationConfig):  # noqa: SIM102
        if not quant_config.ignored_layers and quant_config.args.targets is None:
            quant_config.ignored_layers = _FULL_PRECISION
    for attribute, partial in _IGNORE_LISTS.items():
        if patterns := getattr(quant_config, attribute, None):
            found = _matches(patterns, renamed, partial)
            # A new list: those of shorthands are shared by all engines.
            setattr(quant_config, attribute, [*patterns, *found])
    schemes = getattr(quant_config, "target_scheme_map", {})  # compressed-tensors
    for pattern in [*schemes]:
        for name in _matches([pattern], renamed, partial=False):
            schemes.setdefault(name, schemes[pattern])


def quantises(quant_config: QuantizationConfig | None, layers: Iterable[str]) -> bool:
    """Whether a configuration quantises one of some linear layers, by vLLM's names."""
    return any(
        not isinstance(
            # Has no weights yet, so its sizes do not matter.
            LinearBase(64, 64, quant_config=quant_config, prefix=name).quant_method,
            UnquantizedLinearMethod,
        )
        for name in layers
    )


def _matches(
    patterns: Iterable[str], renamed: Mapping[str, str], partial: bool
) -> list[str]:
    return [
        new
        for old, new in renamed.items()
        if any(_match(pattern, old, partial) for pattern in patterns)
    ]


def _match(pattern: str, name: str, partial: bool) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return fnmatchcase(name, pattern) or (partial and pattern in name)
