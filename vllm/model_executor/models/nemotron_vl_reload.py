# SPDX-License-Identifier: Apache-2.0
"""New weights for a loaded model: all or none of a checkpoint's files.

vLLM puts the weights of all layers aside, collects new tensors, and finishes a layer
when it has all of them.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tp_group
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import (
    get_layerwise_info,
    logger,
)

from .nemotron_vl_weights import Check, Weights, unreadable_files_explained


def are_of_files(weights: Weights) -> bool:
    """Whether one of vLLM's loaders reads the tensors from a checkpoint's files.

    Tensors that a trainer sends come from elsewhere, and may be a part of a checkpoint.
    """
    return getattr(weights, "__name__", None) == "get_all_weights"


def is_whole(weights: Weights, training: bool, load_format: str) -> bool:
    """Whether the tensors must be all those of a checkpoint.

    Args:
        weights: From a loader or a trainer.
        training: Whether the model is as torch makes it, so it is not loaded yet. The
            tensorizer leaves it so if it loads its own format without ``load_weights``.
        load_format: The engine's.
    """
    first = training and (
        load_format != "tensorizer"
        or getattr(weights, "__name__", None) == "tensorizer_weights_iterator"
    )
    return first or are_of_files(weights)


def is_reloading(model: nn.Module) -> bool:
    """Whether vLLM has put the weights of a loaded model aside."""
    return get_layerwise_info(model).kernel_tensors is not None


class Reload:
    """Updates of a loaded model's weights, and what is undone if one ends in an error.

    Args:
        model: Its layers get their weights back.
        config: The engine's.
    """

    def __init__(self, model: nn.Module, config: VllmConfig) -> None:
        self._model = model
        self._config = config
        self._update: object = None  # that `_biases` belong to
        # In use, and as they were
        self._biases: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def guarded(
        self, check: Check, whole: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Where the tensors of one call of ``load_weights`` are loaded.

        Args:
            check: ``checked`` for the tensors.
            whole: Whether they are those of a checkpoint's files.

        Raises:
            ValueError: A kernel, of this rank or another, cannot take new weights.
        """
        if not is_reloading(self._model):
            return contextlib.nullcontext()
        if self._keep_biases() and _is_any(any(self._fixed())):
            self._put_weights_back()
            raise ValueError(
                "A model with layers in INT8 that use vLLM's oneDNN kernel takes no "
                "new weights: the kernel would read scales that a reload has freed. "
                "Start the engine again with the new checkpoint."
            )
        return self._of_files(check) if whole else self._of_a_part()

    @contextlib.contextmanager
    def _of_a_part(self) -> Iterator[None]:
        """Let a trainer send tensors; after an error, the update is over.

        Layers of which all tensors had come are new, the others as they were.
        """
        try:
            yield
        except Exception:
            self._put_weights_back()
            raise

    @contextlib.contextmanager
    def _of_files(self, check: Check) -> Iterator[None]:
        """Let the model take the tensors of files, all or none.

        vLLM's loader reads the files twice. The first time their tensors are compared
        with the configuration, and if they do not fit a rank's part of the model, all
        ranks keep their weights. An error in the body leaves some layers with the new
        weights, and the model complete.

        Raises:
            ValueError: As ``checked``, before the body; or a tensor occurs twice, or
                another rank refuses the files.
            RuntimeError: The body raised an error, which is the cause.
        """
        _forget_partial_layers(self._model)  # of a former update that did not end
        try:
            self._check_files(check)
        except Exception:
            self._put_weights_back()
            raise
        try:
            yield
        except Exception as error:
            self._put_weights_back()
            raise RuntimeError(
                f"The reload ended in the middle: {error} Some layers may have new "
                "weights, the others former ones. Reload a whole checkpoint before the "
                "next request."
            ) from error

    def _check_files(self, check: Check) -> None:
        refused = True
        try:
            loader: Any = get_model_loader(self._config.load_config)
            tensors = loader.get_all_weights(self._config.model_config, self._model)
            with unreadable_files_explained():
                names = Counter(name for name, _ in check(tensors))
            for name, times in names.items():
                if times > 1:  # vLLM would finish the layer without its other tensors
                    raise ValueError(
                        f"Tensor {name!r} occurs {times} times in the checkpoint's "
                        "files. Remove the files that do not belong to it."
                    )
            refused = False
        finally:
            by_another = _is_any(refused)
        if by_another:
            raise ValueError(
                "Another rank refuses the checkpoint's files; its message says why."
            )

    def _keep_biases(self) -> bool:
        """Keep those in use, for vLLM writes new values into them.

        Returns:
            Whether this is the first call of ``load_weights`` in an update.
        """
        update = get_layerwise_info(self._model).kernel_tensors
        if self._update is update:
            return False
        self._update = update
        self._biases = {
            layer: (bias, bias.detach().clone())
            for layer in self._model.modules()
            if isinstance(bias := getattr(layer, "bias", None), torch.Tensor)
        }
        return True

    def _fixed(self) -> Iterator[nn.Module]:
        """Layers whose kernel has the address of scales.

        vLLM makes new scales in a reload, copies their values, and frees them.
        """
        for layer in self._model.modules():
            kernel = getattr(getattr(layer, "scheme", None), "kernel", None)
            if hasattr(kernel, "dnnl_handler"):
                yield layer

    def _put_weights_back(self) -> None:
        _forget_partial_layers(self._model)
        for layer, (bias, former) in self._biases.items():
            if is_reloading(layer):  # vLLM has not finished it
                bias.data.copy_(former)
        self._update, self._biases = None, {}
        # vLLM says of each layer that it failed to load.
        logger.disabled, before = True, logger.disabled
        try:
            finalize_layerwise_reload(self._model, self._config.model_config)
        finally:
            logger.disabled = before
        for layer in self._fixed():
            # The kernel keeps the weight. vLLM has removed the name.
            layer.register_parameter("weight", None)


def _forget_partial_layers(model: nn.Module) -> None:
    # vLLM processes such layers with uninitialised memory in place of what they lack.
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.loaded_weights.clear()
        info.load_numel = 0


def _is_any(flag: bool) -> bool:
    """Whether a rank of the engine has the flag; each of them asks."""
    flags = torch.tensor(int(flag), device="cpu")
    for group in (get_tp_group(), get_pp_group()):
        torch.distributed.all_reduce(
            flags, torch.distributed.ReduceOp.MAX, group.cpu_group
        )
    return bool(flags)
