"""vLLM's Python finds NVIDIA GPUs where this folder is on PYTHONPATH.

vLLM's configuration and layers then choose what they choose on a GPU. Nothing computes:
``support.device_trace`` takes the place of the device.
"""

import importlib.machinery
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# What vLLM's CPU build does not contain, so that nothing can be said about it. vLLM's
# build for CUDA has them; there they are the real ones.
LACKING = (
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm.cumem_allocator",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn._vllm_fa3_C",
)


def find() -> str:
    """vLLM's hook for platforms, which it calls before it looks for a device."""
    import torch
    from triton.backends import backends

    lacking = [name for name in LACKING if not _is_compiled(name)]
    sys.modules.update({name: CompiledModule(name) for name in lacking})
    if lacking and not isinstance(torch.ops._C, CompiledOperators):
        torch.ops.__dict__["_C"] = CompiledOperators(torch.ops._C)
    # vLLM switches Triton off if it finds no driver, or "+cpu" in its own version.
    backends["nvidia"].driver.is_active = staticmethod(lambda: True)
    importlib.metadata.version = _version
    return "pretended_gpu.platform.PretendedCuda"


def _is_compiled(name: str) -> bool:
    """Without an import, which would ask for the platform."""
    root = Path(sys.modules["vllm"].__path__[0]).parent
    return any(root.glob(name.replace(".", "/") + ".*so"))


def _version(name: str) -> str:
    return importlib.metadata.distribution(name).version.removesuffix("+cpu")


class CompiledModule(ModuleType):
    """Stands in for a compiled module: has every name, runs none."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _not_compiled


class CompiledOperators:
    """Stands in for ``torch.ops._C``: says that the GPU supports all, runs nothing."""

    def __init__(self, present: Any) -> None:
        self.present = present

    def __getattr__(self, name: str) -> Any:
        if name == "cutlass_scaled_mm_supports_fp4":  # FP4 tensor cores
            return lambda capability: capability >= 100
        if "supports" in name or "supported" in name:
            return lambda *args: True
        if name == "silu_and_mul":  # layers keep it when they are built
            return _not_compiled
        return getattr(self.present, name)


def _not_compiled(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError("This kernel is not in vLLM's CPU build.")
