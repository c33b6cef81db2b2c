# SPDX-License-Identifier: Apache-2.0
"""In which dtype the tower and the connector compute, and whether quantised."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.quantization.online.base import (
    OnlineQuantizationConfig,
)
from vllm.platforms import current_platform

from ...config.nemotron_vl_cpu import has_amx, has_native_products
from .nemotron_vl_layout import Config, is_quantised

_ENCODER_LAYERS = ["vision_model.*", "mlp1.*"]


class EncoderPrecision(NamedTuple):
    """How the tower and the connector compute.

    Attributes:
        quant_config: vLLM's configuration of their quantisation, if they may have any.
        dtype: Dtype of their unquantised weights and of their activations.
    """

    quant_config: QuantizationConfig | None
    dtype: torch.dtype


def encoder_precision(
    config: Config,
    quant_config: QuantizationConfig | None,
    dtype: torch.dtype,
    layers: Iterable[str],
) -> EncoderPrecision:
    """How the encoder of a checkpoint computes in an engine.

    Args:
        config: The composite configuration.
        quant_config: vLLM's configuration of the quantisation, with resolved patterns.
        dtype: The engine's dtype.
        layers: The encoder's linear layers, by vLLM's names.
    """
    if is_quantised(config.text_config) and not is_quantised(config):
        quant_config = None  # only the language model is quantised
    # vLLM chooses the kernels of quantised layers for the engine's dtype, so a
    # quantised encoder keeps it.
    faster = encoder_dtype(dtype)
    if faster != dtype and not quantises(quant_config, layers):
        dtype = faster
    return EncoderPrecision(quant_config, dtype)


def encoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an unquantised encoder.

    It is the engine's dtype, or float32 on a CPU that emulates the engine's dtype.

    Args:
        dtype: The engine's dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if not current_platform.is_cpu() or has_native_products(name):
        return dtype
    return torch.float32


def keep_encoder_precision(quant_config: QuantizationConfig) -> None:
    """Leave the tower and the connector unquantised where vLLM quantises.

    This concerns checkpoints that are quantised while they are loaded
    (``--quantization fp8``): small print is read better in full precision. An
    ignore list or targets given by the user are kept as they are.

    Args:
        quant_config: vLLM's configuration; changed in place.
    """
    nested = getattr(quant_config, "online_quantization_config", None)
    for online in (quant_config, nested):
        if not isinstance(online, OnlineQuantizationConfig):
            continue
        if not online.ignored_layers and online.args.targets is None:
            online.ignored_layers = [*_ENCODER_LAYERS]


def quantises(quant_config: QuantizationConfig | None, layers: Iterable[str]) -> bool:
    """Whether a configuration quantises one of some linear layers (vLLM's names)."""
    return any(
        not isinstance(
            # It creates no weights, so its sizes do not matter.
            LinearBase(64, 64, quant_config=quant_config, prefix=name).quant_method,
            UnquantizedLinearMethod,
        )
        for name in layers
    )


def flatten_quantised_inputs(*parts: nn.Module) -> None:
    """Reshape the input of quantised layers to ``(rows, width)`` on CPUs with AMX.

    vLLM's INT8 kernel for such CPUs does not take ``(tiles, tokens, width)``.

    Args:
        parts: Tower and connector; changed in place.
    """
    if not (current_platform.is_cpu() and has_amx()):
        return
    for layer in (layer for part in parts for layer in part.modules()):
        method: Any = getattr(layer, "quant_method", None)
        if method is not None and not isinstance(method, UnquantizedLinearMethod):
            method.apply = partial(_apply_flattened, method.apply)


def _apply_flattened(
    apply: Callable[..., torch.Tensor],
    layer: nn.Module,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return apply(layer, x.flatten(0, -2), bias).unflatten(0, x.shape[:-1])
