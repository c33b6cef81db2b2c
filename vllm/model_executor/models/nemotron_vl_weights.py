# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint's tensors while they are loaded."""

import contextlib
from collections.abc import Iterable, Iterator
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError

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
