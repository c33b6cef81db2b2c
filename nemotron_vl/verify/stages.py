# SPDX-License-Identifier: Apache-2.0
"""What is verified: parts, engines, and stages with how far each may be off."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

DTYPES = ("float32", "float16", "bfloat16")
PARTS = ("files", "compare", "read", "measure")

# In the order in which a request passes them. Largest error in each of DTYPES:
# - pixels: difference in levels of 255
# - prompt: number of token ids that differ
# - answer: how much less likely, in logits of the reference, the first token is
#   that differs from the reference's; 0 if all are the same
# - others: relative error, the norm of the difference over that of the reference
# All but the two last stages get the reference's input.
BOUNDS: dict[str, tuple[float, float, float]] = {
    "pixels, exact": (0, 0, 0),
    "pixels, fast": (2, 2, 2),
    "prompt": (0, 0, 0),
    "normalised pixels": (1e-6, 1e-3, 5e-3),
    "normalised pixels, no fused kernel": (1e-6, 1e-3, 5e-3),
    "tower": (1e-4, 5e-3, 3e-2),
    "connector": (1e-5, 2e-3, 1e-2),
    "language model": (1e-4, 1e-2, 5e-2),
    "first token": (2e-4, 1e-2, 6e-2),
    "answer": (1e-3, 0.1, 0.5),
}
# These have no input of the reference: they are wrong if an earlier stage is.
END_TO_END = ("first token", "answer")


class Engine(NamedTuple):
    """A way to run vLLM.

    Args:
        options: Options of the engine.
        devices: GPUs that it needs.
        asked: Whether it runs only if it is asked for, on a machine without a GPU.
    """

    options: dict[str, Any]
    devices: int = 0
    asked: bool = False


ENGINES = {
    "eager": Engine({"enforce_eager": True}),
    "compiled": Engine({}, asked=True),
    "encoder-graphs": Engine({"compilation_config": {"cudagraph_mm_encoder": True}}, 1),
    "tensor-parallel": Engine({"tensor_parallel_size": 2}, 2),
}


class Row(NamedTuple):
    """An error that was measured.

    Args:
        dtype: Dtype of vLLM and of the reference.
        engine: How vLLM ran, such as ``"eager"``.
        stage: One of ``BOUNDS``.
        image: Name of the image.
        error: In the stage's unit.
    """

    dtype: str
    engine: str
    stage: str
    image: str
    error: float

    @property
    def bound(self) -> float:
        return BOUNDS[self.stage][DTYPES.index(self.dtype)]

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # not a number is not within it

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no value for what is not finite."""
        error = self.error if math.isfinite(self.error) else None
        return {**self._asdict(), "error": error, "bound": self.bound, "ok": self.ok}


def worst(rows: Iterable[Row]) -> list[Row]:
    """The row with the largest error of each dtype, engine and stage."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = row[:3]
        if key not in found or not row.error <= found[key].error:
            found[key] = row
    return [*found.values()]


def wrong_stages(rows: Iterable[Row]) -> list[str]:
    """The stages that are wrong by themselves, in their order.

    An end-to-end stage is named only if no other stage is wrong.
    """
    wrong = {row.stage for row in rows if not row.ok}
    own = [stage for stage in BOUNDS if stage in wrong and stage not in END_TO_END]
    return own or [stage for stage in BOUNDS if stage in wrong]
