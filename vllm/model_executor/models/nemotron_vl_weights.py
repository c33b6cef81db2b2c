# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's tensors while they are loaded."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
)

from .nemotron_vl_layout import Layout, quantised_weight, tensor_problem

Weights = Iterable[tuple[str, torch.Tensor]]
Check = Callable[[Weights], Weights]

_UNQUANTISED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
# Ends of names of parameters that vLLM has also for formats without them: orders of
# GPTQ's columns, scales of activations that are not quantised, zero points of symmetric
# weights.
_OPTIONAL = ("g_idx", "input_scale", "input_scale_ub", "zero_point")
_SHOWN = 5  # names of missing tensors in a message


def checked(
    weights: Weights,
    layout: Layout,
    complete: bool,
    unused: tuple[str, ...],
    quantised: Mapping[str, Set[str]],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on and compare them with what the configuration implies.

    The shapes of a quantised layer's tensors depend on its method; vLLM compares them.

    Args:
        weights: Names and tensors, as in the checkpoint.
        layout: What the configuration implies.
        complete: Whether the tensors must be all those of a checkpoint.
        unused: With ``complete``, how names begin that may be missing: those of parts
            that this process does not have.
        quantised: With ``complete``, see `quantised_parameters`.

    Raises:
        ValueError: Names a tensor that is missing, unknown or of a wrong shape.
    """
    known = layout.required | layout.optional
    expected = dict.fromkeys(layout.required)  # in the order of the layers
    for layer, parameters in quantised.items():
        del expected[f"{layer}.weight"]
        expected |= dict.fromkeys(f"{layer}.{name}" for name in sorted(parameters))
    missing = {name for name in expected if not name.startswith(unused)}
    used: set[str] = set()  # of the optional kinds of parameters
    for name, tensor in weights:
        part_of = quantised_weight(name, known) if layout.is_quantised else None
        if part_of and part_of.removesuffix(".weight") not in quantised:
            missing.discard(part_of)  # a layer of another pipeline stage
        problem = tensor_problem(
            name, tensor.shape, tensor.is_floating_point(), known, layout.is_quantised
        )
        if problem == "misshapen":
            raise ValueError(
                f"Tensor {name!r} of the checkpoint has the shape "
                f"{tuple(tensor.shape)}, but config.json implies {known[name]}."
            )
        if problem == "unknown":
            raise ValueError(
                f"Tensor {name!r} of the checkpoint is not part of the model "
                "that config.json describes."
            )
        missing.discard(name)
        used.update(kind for kind in _OPTIONAL if name.endswith(kind))
        yield name, tensor
    unused = tuple({*_OPTIONAL} - used)
    names = [n for n in expected if n in missing and not n.endswith(unused)]
    if names and complete:
        shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        raise ValueError(
            f"The checkpoint lacks {len(names)} of {len(expected)} tensors: "
            f"{shown}. Download its safetensors files again."
        )


def quantised_parameters(model: Any, layout: Layout) -> Mapping[str, Set[str]]:
    """Names of the parameters that vLLM takes for each quantised layer here.

    Args:
        model: One of the models, before its weights are loaded: vLLM then changes
            parameters.
        layout: What the configuration implies.

    Returns:
        The parameters by the name of the layer in the checkpoint, such as
        ``{"mlp1.1": {"weight", "weight_scale", "bias"}}``.
    """
    if not layout.is_quantised:
        return {}
    modules = dict(model.named_modules())
    packed = model.packed_modules_mapping.items()
    merged = {part: whole for whole, parts in packed for part in parts}
    mapper = type(model).hf_to_vllm_mapper  # an engine's own also renames adapters
    found = {}
    for name in layout.required:
        layer, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        (renamed,) = mapper.apply_list([layer])
        parent, _, last = renamed.rpartition(".")
        module: Any = modules.get(f"{parent}.{merged.get(last, last)}")
        module = getattr(module, "base_layer", module)  # below an adapter's
        method = getattr(module, "quant_method", None)
        if method is None or isinstance(method, _UNQUANTISED):
            continue
        found[layer] = {name for name, _ in module.named_parameters(recurse=False)}
    return found


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
