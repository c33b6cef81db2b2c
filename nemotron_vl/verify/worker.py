# SPDX-License-Identifier: Apache-2.0
"""What an engine's workers do for the comparison: vLLM's ``worker_extension_cls``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn
from vllm.platforms import current_platform

from vllm_nemotron_vl.model_executor.models.nemotron_vl_reuse import OUTCOMES

from .errors import relative_error

if TYPE_CHECKING:
    from vllm.v1.worker.encoder_cudagraph import EncoderCudaGraphManager

    from vllm_nemotron_vl.model_executor.models.nemotron_vl import (
        LlamaNemotronVLChatModel,
    )


class EncoderComparison:
    """Methods that vLLM adds to its workers, for ``collective_rpc``."""

    @torch.inference_mode()
    def compare_nemotron_vl_encoder(self, folder: str) -> list[dict[str, float]]:
        """Relative errors of the encoder's stages for each file of the reference.

        Each stage gets the reference's input, so an error shows in its own stage
        and in no later one.
        """
        model: LlamaNemotronVLChatModel = self.get_model()  # type: ignore[attr-defined]
        files = sorted(Path(folder).glob("*.safetensors"), key=lambda f: int(f.stem))
        return [_errors(model, load_file(file)) for file in files]

    def nemotron_vl_tile_outcomes(self) -> dict[str, int]:
        """How many tiles were encoded, repeated or cached so far (see `TileReuse`),
        and how many images passed a CUDA graph of the encoder instead."""
        model: LlamaNemotronVLChatModel = self.get_model()  # type: ignore[attr-defined]
        graphs = graph_manager(self.model_runner)  # type: ignore[attr-defined]
        reuse = model.tile_reuse
        counts = {name: reuse.counts[name] if reuse else 0 for name in OUTCOMES}
        return {**counts, "graphs": graphs.graph_hits if graphs else 0}

    def nemotron_vl_memory(self) -> float:
        """Most gigabytes (10^9 bytes) that this process took: of the GPU if it has
        one, of the main memory otherwise."""
        if current_platform.is_cuda_alike():
            return torch.cuda.max_memory_reserved() / 1e9
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("VmHWM:") + 1]) * 1024 / 1e9


def graph_manager(runner: Any) -> "EncoderCudaGraphManager | None":
    """The CUDA graphs of the encoder on Model Runner V1 or V2, if they are on."""
    if hasattr(runner, "encoder_cudagraph_manager"):
        return runner.encoder_cudagraph_manager
    # Only where images are encoded, on the first rank of a pipeline.
    encoder = getattr(runner.model_state, "encoder_runner", None)
    return encoder.cudagraph_manager if encoder else None


def _errors(model: Any, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    device = next(model.language_model.parameters()).device
    pixels = expected["pixels"].to(device)
    conditioned = expected["conditioned"].to(device, model.encoder_dtype)
    conditioner = model.input_conditioner
    parts = conditioned.split(model.max_encoder_tiles)
    tower = torch.cat([model.vision_model(part) for part in parts])
    with _given_tower(model, expected["tower"].to(device, model.encoder_dtype)):
        features = model.extract_feature(pixels)
    errors = {
        "normalised pixels": relative_error(
            conditioner(pixels), expected["conditioned"]
        ),
        "tower": relative_error(tower, expected["tower"]),
        "connector": relative_error(features, expected["features"]),
    }
    if current_platform.is_cuda_alike():
        from vllm_nemotron_vl.model_executor.models import nemotron_vl_tower

        fused = "fused_mm_input_norm_triton"
        with mock.patch.object(nemotron_vl_tower, fused, None):
            errors["normalised pixels, no fused kernel"] = relative_error(
                conditioner(pixels), expected["conditioned"]
            )
    return errors


@contextmanager
def _given_tower(model: Any, features: torch.Tensor) -> Iterator[None]:
    """While the block runs, the tower's output is ``features``, in their order."""
    tower, model.vision_model = model.vision_model, _Given(features)
    try:
        yield
    finally:
        model.vision_model = tower


class _Given(nn.Module):
    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self._left = features

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        count = len(pixel_values)
        part, self._left = self._left[:count], self._left[count:]
        return part
