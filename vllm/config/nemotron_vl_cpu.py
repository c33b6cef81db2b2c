# SPDX-License-Identifier: Apache-2.0
"""Whether this CPU has instructions for matrix products in a dtype.

oneDNN emulates the other dtypes. On a CPU with AVX2 only, products in bfloat16
and float16 take six to seven times as long as in float32 (measured on layers of
ViT-H and Llama-3.1-8B, see docs/encoder.md). Imports neither torch nor vLLM.
"""

import platform
from functools import cache
from pathlib import Path

# Flags in /proc/cpuinfo: of x86 processors, then of Arm.
_INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}

# vLLM's kernel for products with 4-bit weights on CPUs. The AVX2 build lacks it.
INT4_KERNEL = "cpu_gemm_wna16"


@cache
def processor_flags() -> frozenset[str]:
    """Flags in ``/proc/cpuinfo``; empty where the system has no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def has_native_products(dtype: str) -> bool:
    """Whether the CPU has instructions for products in a dtype.

    Args:
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    """
    wanted = _INSTRUCTIONS.get(dtype)
    return wanted is None or not wanted.isdisjoint(processor_flags())


def has_x86_bfloat16() -> bool:
    """Whether this is an x86 CPU with instructions for products in bfloat16."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor_flags())


def has_amx() -> bool:
    """Whether the CPU has AMX, for which vLLM has kernels of its own."""
    return "amx_tile" in processor_flags()


def int4_advice() -> str:
    """Where checkpoints run that `INT4_KERNEL` computes, if this CPU lacks it."""
    where = ", or this one on a CPU with AVX-512" if _is_x86() else ""
    return f"Serve an INT8 or an unquantised checkpoint{where}."


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def slow_dtype(dtype: str) -> str | None:
    """A warning if this CPU emulates a dtype, which names a faster one.

    Args:
        dtype: See `has_native_products`.
    """
    if has_native_products(dtype):
        return None
    start = f"This CPU has no instructions for products of {dtype} and emulates them: "
    if has_native_products("bfloat16"):
        return start + "prompts are processed faster with --dtype bfloat16."
    times = " (several times with AVX2)" if _is_x86() else ""
    return (
        f"{start}prompts are processed faster with --dtype float32{times}, in twice "
        "the memory."
    )
