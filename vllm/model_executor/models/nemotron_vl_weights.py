# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's tensors while they are loaded."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from vllm.config import ModelConfig, get_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from .nemotron_vl_layer_names import HF_TO_VLLM
from .nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    IGNORED_SUFFIXES,
    LANGUAGE_MODEL,
    Config,
    checkpoint_tensors,
    is_quantised,
    quantised_weight,
)

Weights = Iterable[tuple[str, torch.Tensor]]
Check = Callable[[Weights], Weights]

_UNQUANTISED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_SHOWN = 5  # names of missing tensors in a message


def checked(
    weights: Weights,
    config: Config,
    complete: bool,
    encoder_only: bool,
    quantised: Mapping[str, Set[str]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on and compare them with what the configuration implies.

    The shapes of a quantised layer's tensors depend on its method; vLLM compares them.

    Args:
        weights: Names and tensors, as in the checkpoint.
        config: The composite configuration.
        complete: Whether the tensors must be all those of a checkpoint.
        encoder_only: With ``complete``, whether those of the language model may be
            missing: with ``--mm-encoder-only`` vLLM does not read their files.
        quantised: With ``complete``, see `quantised_parameters`.

    Raises:
        ValueError: Names a tensor that is missing, unknown or of a wrong shape.
    """
    required = checkpoint_tensors(config)
    known = required | CONDITIONER_TENSORS
    expected = dict.fromkeys(required)  # in the order of the layers
    for layer, parameters in quantised.items():
        del expected[f"{layer}.weight"]
        expected |= dict.fromkeys(f"{layer}.{name}" for name in sorted(parameters))
    missing = {
        name
        for name in expected
        if not (encoder_only and name.startswith(LANGUAGE_MODEL))
    }
    is_any_quantised = is_quantised(config) or is_quantised(config.llm_config)
    for name, tensor in weights:
        part_of = quantised_weight(name, known) if is_any_quantised else None
        if part_of is not None:
            if part_of.removesuffix(".weight") not in quantised:
                missing.discard(part_of)  # a layer of another pipeline stage
        elif name in known:
            packed = is_any_quantised and not tensor.is_floating_point()
            if tensor.shape != known[name] and not packed:
                raise ValueError(
                    f"Tensor {name!r} of the checkpoint has the shape "
                    f"{tuple(tensor.shape)}, but config.json implies {known[name]}."
                )
        elif not name.endswith(IGNORED_SUFFIXES):
            raise ValueError(
                f"Tensor {name!r} of the checkpoint is not part of the model "
                "that config.json describes."
            )
        missing.discard(name)
        yield name, tensor
    if missing and complete:
        names = [name for name in expected if name in missing]
        shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        raise ValueError(
            f"The checkpoint lacks {len(missing)} of {len(expected)} tensors: "
            f"{shown}. Download its safetensors files again."
        )


def quantised_parameters(
    model: nn.Module, packed: Mapping[str, list[str]], config: Config
) -> Mapping[str, Set[str]]:
    """Names of the parameters that vLLM takes for each quantised layer here.

    Args:
        model: Before its weights are loaded: vLLM then changes parameters.
        packed: The model's ``packed_modules_mapping``.
        config: The composite configuration.

    Returns:
        The parameters by the name of the layer in the checkpoint, such as
        ``{"mlp1.1": {"weight", "weight_scale", "bias"}}``.
    """
    if not (is_quantised(config) or is_quantised(config.llm_config)):
        return {}
    modules = dict(model.named_modules())
    merged = {part: whole for whole, parts in packed.items() for part in parts}
    found = {}
    for name in checkpoint_tensors(config):
        layer, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        (renamed,) = HF_TO_VLLM.apply_list([layer])
        parent, _, last = renamed.rpartition(".")
        module: Any = modules.get(f"{parent}.{merged.get(last, last)}")
        module = getattr(module, "base_layer", module)  # below an adapter's
        method = getattr(module, "quant_method", None)
        if method is None or isinstance(method, _UNQUANTISED):
            continue
        parameters = {name for name, _ in module.named_parameters(recurse=False)}
        # Orders of GPTQ's columns are optional.
        found[layer] = {name for name in parameters if not name.endswith("g_idx")}
    return found


def are_of_files(weights: Weights) -> bool:
    """Whether one of vLLM's loaders reads the tensors from a checkpoint's files.

    Tensors that a trainer sends come from elsewhere, and may be a part of a checkpoint.
    """
    return getattr(weights, "__name__", None) == "get_all_weights"


@contextlib.contextmanager
def reload_of_files(model: nn.Module, check: Check) -> Iterator[None]:
    """Let a loaded model take the tensors of files, all or none.

    vLLM's loader reads the files twice. The first time their tensors are compared with
    the configuration, and if they do not fit, the model keeps its weights. An error in
    the body leaves some layers with the new weights, and the model complete.

    Args:
        model: vLLM has put its weights aside.
        check: `checked` for the tensors of a whole checkpoint.

    Raises:
        ValueError: As `checked`, before the body, or a tensor occurs twice.
        RuntimeError: The body raised an error, which is the cause.
    """
    vllm_config = get_current_vllm_config()
    model_config = vllm_config.model_config
    _forget_partial_layers(model)  # of a former update that ended in an error
    try:
        loader: Any = get_model_loader(vllm_config.load_config)
        tensors = loader.get_all_weights(model_config, model)
        with unreadable_files_explained():
            names = Counter(name for name, _ in check(tensors))
        for name, times in names.items():
            if times > 1:  # vLLM would finish the layer without its other tensors
                raise ValueError(
                    f"Tensor {name!r} occurs {times} times in the checkpoint's files. "
                    "Remove the files that do not belong to it."
                )
    except Exception:
        _put_weights_back(model, model_config)
        raise
    try:
        yield
    except Exception as error:
        _put_weights_back(model, model_config)
        raise RuntimeError(
            f"The reload ended in the middle: {error} Some layers may have new "
            "weights, the others former ones. Reload a whole checkpoint before the "
            "next request."
        ) from error


def is_reloading(model: nn.Module) -> bool:
    """Whether vLLM has put the weights of a loaded model aside."""
    return get_layerwise_info(model).kernel_tensors is not None


def _put_weights_back(model: nn.Module, model_config: ModelConfig) -> None:
    _forget_partial_layers(model)
    finalize_layerwise_reload(model, model_config)


def _forget_partial_layers(model: nn.Module) -> None:
    # vLLM processes such layers with uninitialised memory in place of what they lack.
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


@contextlib.contextmanager
def unreadable_files_explained() -> Iterator[None]:
    """Turn the errors of damaged and of unsafe files into messages for users.

    Raises:
        ValueError: Says what is wrong with the file and what to do.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"A safetensors file of the checkpoint is damaged: {error}. "
            "`nemotron-vl inspect` names it; download it again."
        ) from error
    except UnpicklingError as error:
        raise ValueError(
            "A .bin or .pt file of the checkpoint holds more than tensors and "
            "could run any code, so it is not read. Use safetensors files."
        ) from error
