# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's tensors while they are loaded."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
from vllm.transformers_utils.config import get_safetensors_params_metadata

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


def reloaded(
    weights: Iterable[tuple[str, torch.Tensor]],
    model: nn.Module,
    config: Config,
    encoder_only: bool,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass on the tensors of files that a loaded model is to take, all or none.

    The headers of safetensors files are compared with the configuration first. If they
    do not fit, or if there are no files, the model keeps its weights.

    Args:
        weights: Of a loader; its first step finds the files or downloads them.
        model: vLLM has put its weights aside.
        config: As for `checked`.
        encoder_only: As for `checked`.

    Raises:
        ValueError: As `checked`.
    """
    model_config = get_current_vllm_config().model_config
    weights = iter(weights)
    try:
        with unreadable_files_explained():
            first = [*islice(weights, 1)]
            headers = get_safetensors_params_metadata(
                model_config.model, revision=model_config.revision
            )
            if headers or not first:
                _check_headers(headers, config, encoder_only)
    except Exception:
        finalize_layerwise_reload(model, model_config)  # puts the weights back
        raise
    try:
        with unreadable_files_explained():
            yield from checked(chain(first, weights), config, True, encoder_only)
    except ValueError as error:
        raise ValueError(
            f"{error} Some weights are those of the new checkpoint already: restart "
            "the engine."
        ) from error


def _check_headers(
    headers: Mapping[str, Mapping[str, Any]], config: Config, encoder_only: bool
) -> None:
    known = checkpoint_tensors(config) | CONDITIONER_TENSORS
    tensors = (
        (name, _described(header))
        for name, header in headers.items()
        # Files that an index does not name may have other tensors.
        if name in known or quantised_weight(name, known) is not None
    )
    deque(checked(tensors, config, True, encoder_only), maxlen=0)


def _described(header: Mapping[str, Any]) -> torch.Tensor:
    floating = header["dtype"].startswith(("F", "BF"))
    dtype = torch.float32 if floating else torch.uint8
    return torch.empty(header["shape"], dtype=dtype, device="meta")


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
