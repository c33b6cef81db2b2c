"""Encoder graphs without a GPU: vLLM's manager, with a stand-in for ``CUDAGraph``.

Capturing records each operation of the forward with its tensors. A replay repeats
them on the same tensors, as a GPU does: Python code does not run again, so a forward
that reads anything else than the graph's buffers gives old results.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.config import VllmConfig
from vllm.v1.worker import encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Recorder(TorchDispatchMode):
    """Records operations, and refuses those that wait for a GPU.

    Args:
        add: Called with a function that repeats the operation.
    """

    def __init__(self, add: Callable[[Callable[[], None]], None]) -> None:
        super().__init__()
        self.add = add

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("A value of a tensor was read while capturing.")
        found = func(*args, **kwargs)
        given = {_memory(tensor) for tensor in _tensors((args, kwargs))}

        def repeat() -> None:
            again = func(*args, **kwargs)
            for leaf in tree_leaves(again):
                if hasattr(leaf, "wait") and not isinstance(leaf, torch.Tensor):
                    leaf.wait()  # for the other ranks
            for old, new in zip(_tensors(found), _tensors(again), strict=True):
                if _memory(old) not in given:
                    old.copy_(new)

        self.add(repeat)
        return found


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.operations: list[Callable[[], None]] = []
        self.replays = 0

    @torch.inference_mode()
    def replay(self) -> None:
        assert self.operations
        self.replays += 1
        for repeat in self.operations:
            repeat()


@contextlib.contextmanager
def _capture(graph: Graph, **options: Any) -> Iterator[None]:
    with Recorder(graph.operations.append):
        yield


def capture(manager: EncoderCudaGraphManager) -> None:
    """Capture all graphs of a manager. Replays need no GPU, either."""
    with (
        mock.patch.object(torch.cuda, "CUDAGraph", Graph),
        mock.patch.object(torch.cuda, "graph", _capture),
        mock.patch.object(encoder_cudagraph, "current_stream", lambda: None),
    ):
        manager.capture(graph_pool=object())


def captured(model: Any, config: VllmConfig) -> EncoderCudaGraphManager:
    """A manager with all its graphs for a model that is loaded in this process."""
    dtype = config.model_config.dtype
    assert isinstance(dtype, torch.dtype)
    manager = EncoderCudaGraphManager(config, torch.device("cpu"), dtype, model)
    capture(manager)
    return manager


def attach(worker: Any) -> list[int]:
    """Give a worker's model runner such a manager, for `LLM.collective_rpc`.

    Returns:
        The numbers of tokens for which graphs exist.
    """
    runner = worker.model_runner
    manager = captured(runner.get_model(), runner.vllm_config)
    if hasattr(runner, "encoder_cudagraph_manager"):  # V1
        runner.encoder_cudagraph_manager = manager
    else:
        runner.model_state.encoder_runner.cudagraph_manager = manager
    return manager.token_budgets


def replays(worker: Any) -> tuple[int, int]:
    """How many images a worker's manager has encoded with graphs, and without."""
    runner = worker.model_runner
    manager = getattr(runner, "encoder_cudagraph_manager", None)
    if manager is None:
        manager = runner.model_state.encoder_runner.cudagraph_manager
    return manager.graph_hits, manager.graph_misses
