# SPDX-License-Identifier: Apache-2.0
"""Which types of numbers the processor multiplies itself.

Without such instructions oneDNN emulates them: on a CPU with AVX2 alone the
products of bfloat16 and float16 take six to seven times as long as those of
float32 (measured on layers of ViT-H and Llama-3.1-8B, see docs/encoder.md).
Imports neither torch nor vLLM.
"""

from functools import cache
from pathlib import Path

# As Linux names them: Intel's and AMD's, then Arm's.
_INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


@cache
def processor_flags() -> frozenset[str]:
    """Names of the processor's features; none where the system does not tell."""
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
    """Whether products of a type are computed and not emulated.

    Args:
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    """
    wanted = _INSTRUCTIONS.get(dtype)
    return wanted is None or not wanted.isdisjoint(processor_flags())


def slow_dtype(dtype: str) -> str | None:
    """A sentence for an engine on this CPU, if float32 is several times faster.

    Args:
        dtype: As of `has_native_products`.
    """
    if has_native_products(dtype):
        return None
    return (
        f"This CPU has no instructions for products of {dtype}, which are emulated: "
        "with --dtype float32 prompts are processed several times faster, in twice "
        "the memory."
    )
