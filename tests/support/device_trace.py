"""What a computation would do on a CUDA device, found out without one.

Tensors on the CPU are real, those on the device are torch's fake tensors, which have a
shape and no values.
"""

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of the published tower: its blocks, and the kernels of a page of 13 tiles on a GPU.
BLOCKS, KERNELS_OF_A_PAGE = 32, 363

# One for all traces: torch does not mix the fake tensors of two.
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)

# Operators that give memory a name or a shape and launch no kernel.
_ONLY_MEMORY = ("empty", "new_empty", "_unsafe_view", "lift_fresh", "detach")

# The host must know values of the device to go on.
_READS_VALUES = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}

# Collectives of vLLM, by the name of their operator.
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")


class DeviceTrace(TorchDispatchMode):
    """Records what reaches the device, see `traced`.

    Attributes:
        waits: What makes the host wait for the device, with the line of code.
        kernels: Kernels launched on the device, by name. Copies are included.
        collectives: Name and bytes of this rank's tensor, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.kernels: Counter[str] = Counter()
        self.collectives: list[tuple[str, int]] = []
        self._pinned: list[torch.UntypedStorage] = []

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self._pinned.append(tensor.untyped_storage())
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        places = {storage._cdata for storage in self._pinned}
        return tensor.untyped_storage()._cdata in places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.is_pinned.default:
            return self.is_pinned(args[0])
        if func is torch.ops.aten._pin_memory.default:
            return self.pin(args[0].clone())
        if kwargs.get("pin_memory"):
            return self.pin(self._on_cpu(func, args, kwargs | {"pin_memory": False}))
        leaves = tree_leaves((args, kwargs))
        if not any(_on_device(leaf) for leaf in leaves):
            return self._on_cpu(func, args, kwargs)
        name = func._schema.name.partition("::")[2]
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func.namespace == "vllm" and name not in _COLLECTIVES:
            with self:  # the function behind the operator
                return func._op_dk(torch._C.DispatchKey.CUDA, *args, **kwargs)
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        if reason := self._reason_to_wait(func, name, args, kwargs):
            self.waits.append(f"{reason} ({name}) in {_caller()}")
        if name in _COLLECTIVES:
            size = args[0].numel() * args[0].element_size()
            self.collectives.append((name, size))
        if not func.is_view and not name.startswith(_ONLY_MEMORY):
            self.kernels[name] += 1
        return func(*args, **kwargs)

    def _on_cpu(self, func, args, kwargs):
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _reason_to_wait(self, func, name: str, args, kwargs) -> str | None:
        if name in ("_to_copy", "copy_"):
            ends = [args[0], args[1]] if name == "copy_" else [args[0]]
            to = kwargs.get("device") or args[0].device
            if ends[-1].device.type == to.type:
                return None
            if not (kwargs.get("non_blocking") or True in args[2:]):
                return "blocking copy"
            on_cpu = [end for end in ends if end.device.type == "cpu"]
            pinned = all(map(self.is_pinned, on_cpu))
            return None if pinned else "copy of memory that is not pinned"
        if name in ("index", "index_put_"):
            indices = [index for index in args[1] if index is not None]
            if any(index.device.type == "cpu" for index in indices):
                return "indices on the CPU"
            masks = [index for index in indices if not index.dtype.is_signed]
            return "values of the device" if masks else None
        return "values of the device" if _READS_VALUES & set(func.tags) else None


@contextlib.contextmanager
def traced(capturing: bool = False) -> Iterator[DeviceTrace]:
    """Record what this block would do on a CUDA device.

    Args:
        capturing: A CUDA graph is being captured.
    """
    trace = DeviceTrace()

    def launch(function: Any, *args: Any, **kwargs: Any) -> None:
        trace.kernels[f"triton {function.__name__}"] += 1

    def attention(query: torch.Tensor, *args: Any) -> tuple:
        trace.kernels["flash attention"] += 1
        return torch.empty_like(query), None, None, None

    def attention_2(*args: Any) -> tuple:
        return attention(*args)[:2]

    def packed_attention(query: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        trace.kernels["flashinfer attention"] += 1
        return torch.empty_like(query), None

    fa2, fa3 = SimpleNamespace(varlen_fwd=attention_2), SimpleNamespace(fwd=attention)
    flashinfer = SimpleNamespace(cudnn_batch_prefill_with_kv_cache=packed_attention)
    sys.modules["flashinfer.prefill"] = cast(ModuleType, flashinfer)
    with (
        mock.patch("triton.runtime.jit.JITFunction.run", launch),
        mock.patch.object(torch.ops, "_vllm_fa2_C", fa2),
        mock.patch.object(torch.ops, "_vllm_fa3_C", fa3),
        mock.patch("torch.cuda.is_current_stream_capturing", lambda: capturing),
        _FAKE,
        _PinnedTensors(trace),
        trace,
    ):
        yield trace
    del sys.modules["flashinfer.prefill"]


class _PinnedTensors(TorchFunctionMode):
    """Without a driver, torch cannot make a pinned tensor of a list."""

    def __init__(self, trace: DeviceTrace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.pop("pin_memory", False):
            return self.trace.pin(func(*args, **kwargs))
        return func(*args, **kwargs)


def _on_device(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, FakeTensor)


def _caller() -> str:
    """The function of vLLM or of this package that is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "vllm" in path.parts and "tests" not in path.parts:
            return f"{path.name}, {frame.name}"
    return "the test"
