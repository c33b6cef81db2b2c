# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's tensors while they are loaded."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from vllm.config import ModelConfig, get_current_vllm_config
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from .nemotron_vl_layout import (
    CONDITIONER_TENSORS,
    IGNORED_SUFFIXES,
    LANGUAGE_MODEL,
    Config,
    checkpoint_tensors,
    is_quantised,
    quantised_weight,
)

_SHOWN = 5  # names of missing tensors in a message


def checked(
    weights: Iterable[tuple[str, torch.Tensor]],
    config: Config,
    complete: bool,
    encoder_only: bool,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass tensors on and compare them with what the configuration implies.

    The tensors of a quantised layer depend on its method. Of such a layer only
    the presence is checked here; vLLM checks the rest.

    Args:
        weights: Names and tensors, as in the checkpoint.
        config: The composite configuration.
        complete: Whether the tensors must be all those of a checkpoint.
        encoder_only: With ``complete``, whether those of the language model may be
            missing: with ``--mm-encoder-only`` vLLM does not read their files.

    Raises:
        ValueError: Names a tensor that is missing, unknown or of a wrong shape.
    """
    required = checkpoint_tensors(config)
    known = required | CONDITIONER_TENSORS
    missing = {
        name
        for name in required
        if not (encoder_only and name.startswith(LANGUAGE_MODEL))
    }
    quantised = is_quantised(config) or is_quantised(config.llm_config)
    for name, tensor in weights:
        part_of = quantised_weight(name, known) if quantised else None
        if part_of is not None:
            missing.discard(part_of)
        elif name in known:
            packed = quantised and not tensor.is_floating_point()
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
        names = [name for name in required if name in missing]
        shown = ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
        raise ValueError(
            f"The checkpoint lacks {len(missing)} of {len(required)} tensors: "
            f"{shown}. Download its safetensors files again."
        )


def are_of_files(weights: Iterable[tuple[str, torch.Tensor]]) -> bool:
    """Whether one of vLLM's loaders reads the tensors from a checkpoint's files.

    Tensors that a trainer sends come from elsewhere, and may be a part of a checkpoint.
    """
    return getattr(weights, "__name__", None) == "get_all_weights"


@contextlib.contextmanager
def reload_of_files(
    model: nn.Module, config: Config, encoder_only: bool
) -> Iterator[None]:
    """Let a loaded model take the tensors of files, all or none.

    vLLM's loader reads the files twice. The first time their tensors are compared with
    the configuration, and if they do not fit, the model keeps its weights. An error in
    the body leaves some layers with the new weights, and the model complete.

    Args:
        model: vLLM has put its weights aside.
        config: As for `checked`.
        encoder_only: As for `checked`.

    Raises:
        ValueError: As `checked`, before the body.
        RuntimeError: The body raised an error, which is the cause.
    """
    vllm_config = get_current_vllm_config()
    model_config = vllm_config.model_config
    _forget_partial_layers(model)  # of a former update that ended in an error
    try:
        loader: Any = get_model_loader(vllm_config.load_config)
        tensors = loader.get_all_weights(model_config, model)
        with unreadable_files_explained():
            deque(checked(tensors, config, True, encoder_only), maxlen=0)
    except Exception:
        _put_weights_back(model, model_config)
        raise
    try:
        yield
    except Exception as error:
        _put_weights_back(model, model_config)
        raise RuntimeError(
            f"The reload ended in the middle: {error} Some layers have new weights, "
            "the others former ones. Reload a whole checkpoint before the next request."
        ) from error


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
