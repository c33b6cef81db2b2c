"""The encoder's CUDA graphs without a GPU, below vLLM's own manager of them.

A CUDA graph repeats the kernels of one call on the memory that they had then. Python
does not run again. `Graph` does the same on a CPU: the capture records each operator
with its tensors, and `replay` repeats the operators on the tensors' present content.
So a forward that reads anything but its buffers, or decides by their values, gives
wrong features here as on a GPU. What CUDA cannot capture is refused with its name.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.config import VllmConfig
from vllm.v1.worker import encoder_cudagraph
from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

# What waits for the GPU or reads pageable memory of the host. CUDA refuses both within
# a capture. In inference mode composite operators arrive whole, hence `item`.
VALUE = "reads a value of a tensor"
SIZE = "makes a tensor whose size depends on values"
ON_THE_HOST = {
    "aten::_local_scalar_dense": VALUE,
    "aten::item": VALUE,
    "aten::is_nonzero": VALUE,
    "aten::equal": VALUE,
    "Tensor.tolist": VALUE,  # on a CPU this one is no operator
    "aten::nonzero": SIZE,
    "aten::masked_select": SIZE,
    "aten::_unique2": SIZE,
    "aten::lift_fresh": "copies Python values into a tensor",
}


def _refuse(name: str, reason: str | None) -> None:
    if reason:
        raise RuntimeError(f"A CUDA graph cannot hold {name}: it {reason}.")


def _spoil(tensor: torch.Tensor) -> None:
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))


@dataclass
class Graph:
    """In the place of ``torch.cuda.CUDAGraph``."""

    tape: list[tuple] = field(default_factory=list)
    replays: int = 0

    @torch.inference_mode()
    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, results in self.tape:
            if function.name().startswith("aten::empty"):
                _spoil(results)  # shows what was written past the operators
                continue
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(new, torch.Tensor):
                    assert new.shape == old.shape, function
                    if new.data_ptr() != old.data_ptr():
                        old.copy_(new)
                elif hasattr(new, "wait"):  # of a collective
                    new.wait()


class _Capture(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.name().partition(".")[0], kwargs or {}
        _refuse(name, ON_THE_HOST.get(name))
        if name == "aten::index":
            masks = [x for x in args[1] if x is not None and x.dtype == torch.bool]
            _refuse(name, SIZE if masks else None)
        results = function(*args, **kwargs)
        self.graph.tape.append((function, args, kwargs, results))
        return results


class _Lists(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.tolist:
            _refuse("Tensor.tolist", ON_THE_HOST["Tensor.tolist"])
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _graph(graph: Graph, pool: Any = None, stream: Any = None) -> Iterator[None]:
    """In the place of ``torch.cuda.graph``."""
    with _Lists(), _Capture(graph):
        yield


@torch.inference_mode()
def capture(manager: EncoderCudaGraphManager) -> EncoderCudaGraphManager:
    """Let a manager capture its graphs, and spoil what the captures computed.

    A replay that leaves a row of its output out gives NaN.
    """
    with (
        mock.patch.object(torch.cuda, "CUDAGraph", Graph),
        mock.patch.object(torch.cuda, "graph", _graph),
        mock.patch.object(encoder_cudagraph, "current_stream", lambda: None),
    ):
        manager.capture(graph_pool=object())
    for meta in captured(manager):
        _spoil(meta.output_buffer)
    return manager


def captured(manager: EncoderCudaGraphManager) -> list:
    """vLLM's metadata of each graph; its `graph` is a `Graph`."""
    return [meta for kind in manager.budget_graphs.values() for meta in kind.values()]


def graphs(
    model: torch.nn.Module, config: VllmConfig, dtype: torch.dtype | None = None
) -> EncoderCudaGraphManager:
    """vLLM's manager with captured graphs of a model that was loaded alone.

    `config` needs what a user sets: ``cudagraph_mm_encoder`` does not matter here,
    but the budgets do.
    """
    dtype = dtype or config.model_config.dtype
    device = torch.device("cpu")
    return capture(EncoderCudaGraphManager(config, device, dtype, model))
