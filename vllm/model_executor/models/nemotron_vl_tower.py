# SPDX-License-Identifier: Apache-2.0
"""The C-RADIO tower for tiles of one size, built of vLLM's layers, and its conditioner.

The conditioner computes what C-RADIO's own code does
(https://github.com/NVlabs/RADIO/blob/b0f47ac/radio/input_conditioner.py, 2025-05-26).
"""

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import PreTrainedConfig
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.intern_vit import InternVisionEncoder
from vllm.model_executor.models.radio import RadioModel
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON

from .nemotron_vl_blocks import TowerBlock, compilation_problem
from .nemotron_vl_layout import CONDITIONER_TENSORS

try:
    from vllm.model_executor.layers.fusion.mm_input_norm import (
        fused_mm_input_norm_triton,
    )
except ImportError:  # `forward` gives the same values without it, more slowly
    fused_mm_input_norm_triton = None  # type: ignore[assignment]

logger = init_logger("vllm.model_executor.models.nemotron_vl_tower")

_LEVELS = 255  # of a uint8 pixel


def _on_host(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").double()


def _changed(former: torch.Tensor, sent: torch.Tensor | None) -> torch.Tensor:
    return former if sent is None else torch.where(sent.isnan(), former, sent)


class InputConditioner(nn.Module):
    """Subtracts the mean of each channel and divides by its standard deviation.

    Statistics and arithmetic are float32, whatever the dtype of the model. On
    GPUs vLLM's Triton kernel does it in one pass.

    Args:
        mean: Mean of each channel, for pixels in 0..1.
        std: Standard deviation of each channel.
        dtype: Dtype of the conditioned pixels.
        persistent: Whether the statistics are part of the state dict. vLLM fills
            all of that at random for dummy weights.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        persistent: bool = True,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        for name in ("scale", "shift"):
            buffer = torch.empty(len(mean), dtype=torch.float32)
            self.register_buffer(name, buffer, persistent=persistent)
        self._defaults = _on_host(mean), _on_host(std)
        self._set(*self._defaults)

    def _set(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        values = ((self.scale, 1 / (_LEVELS * std)), (self.shift, -mean / std))
        for buffer, value in values:
            # While vLLM reloads weights, a buffer has a loader of its own.
            load = getattr(buffer, "weight_loader", default_weight_loader)
            load(buffer, value.float())

    def _present(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, whoever has filled the buffers."""
        # While vLLM reloads weights, it keeps the buffers that are in use here.
        aside = get_layerwise_info(self).kernel_tensors
        _, buffers = aside or ({}, dict(self.named_buffers()))
        scale, shift = (buffers[name].cpu().double() for name in ("scale", "shift"))
        std = 1 / (_LEVELS * scale)
        return -shift * std, std

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Condition tiles.

        Args:
            pixel_values: ``(tiles, channels, height, width)``, uint8 or float
                in 0..1.

        Returns:
            The same shape, in the conditioner's dtype.
        """
        if pixel_values.dtype != torch.uint8:
            pixel_values = pixel_values.float() * _LEVELS
        fused = fused_mm_input_norm_triton
        if fused is not None and HAS_TRITON and current_platform.is_cuda_alike():
            out = torch.empty_like(
                pixel_values, dtype=self.dtype, memory_format=torch.contiguous_format
            )
            planes, flat = pixel_values.flatten(2), out.flatten(2)
            fused(planes, flat, self.scale, self.shift)
            return out
        scale, shift = self.scale.view(-1, 1, 1), self.shift.view(-1, 1, 1)
        return (pixel_values * scale + shift).to(self.dtype)

    def load_statistics(
        self, weights: Iterable[tuple[str, torch.Tensor]], whole: bool = False
    ) -> Iterable[tuple[str, torch.Tensor]]:
        """Load the statistics that are among a checkpoint's tensors.

        Args:
            weights: Names and tensors. In vLLM's sparse patches of weights, NaN stands
                for a value that does not change.
            whole: Whether they are all tensors of a checkpoint. Statistics that it does
                not have are then those that the conditioner was made with.

        Yields:
            All other tensors, with their names.
        """
        found: dict[str, torch.Tensor] = {}
        for name, tensor in weights:
            if name in CONDITIONER_TENSORS:
                found[name] = tensor.flatten().cpu().double()
            else:
                yield name, tensor
        if whole or found:
            former = self._defaults if whole else self._present()
            self._set(*map(_changed, former, map(found.get, CONDITIONER_TENSORS)))


class NemotronVLRadioModel(RadioModel):
    """C-RADIO for tiles of one size.

    The position embeddings are resized to the grid of a tile when they are loaded,
    not in every forward.

    Args:
        config: Composite configuration of the checkpoint.
        quant_config: Quantisation of the linear layers, if any.
        prefix: Name of the module in the model.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        quant_config: QuantizationConfig | None = None,
        *,
        prefix: str = "",
    ) -> None:
        tower = copy.deepcopy(config.vision_config)
        tower.image_size = tower.cpe_max_size = config.force_image_size
        prefix = maybe_prefix(prefix, "model")
        super().__init__(
            tower, quant_config, prefix=prefix, num_hidden_layers_override=0
        )
        # A reload would look for weights of the buffer, which nothing reads here.
        self.summary_idxs = None
        self.align_corners: bool = tower.pos_embed_align_corners
        self.model.encoder = InternVisionEncoder(  # type: ignore[assignment]
            tower,
            quant_config,
            prefix=f"{prefix}.encoder",
            layer_cls=TowerBlock,  # type: ignore[arg-type]
        )
        if problem := compilation_problem(get_current_vllm_config()):
            logger.warning_once(problem)

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens before the patches of a tile."""
        return self.model.patch_generator.num_skip

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        """Features of the patches.

        Args:
            pixel_values: Conditioned pixels ``(tiles, 3, size, size)``.

        Returns:
            ``(tiles, patches, hidden_size)``, without class and register tokens.
        """
        hidden_states = self.model.patch_generator(pixel_values)
        return self.model.encoder(hidden_states)[:, self.num_prefix_tokens :]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loader = AutoWeightsLoader(self)
        return loader.load_weights(
            (name, self._to_tile_grid(tensor) if name.endswith("pos_embed") else tensor)
            for name, tensor in weights
        )

    def _to_tile_grid(self, pos_embed: torch.Tensor) -> torch.Tensor:
        """Resize ``(1, rows * columns, hidden)`` to the grid of one tile.

        Bilinear and in float32, in which C-RADIO does it in every forward
        (https://github.com/NVlabs/RADIO/blob/b0f47ac/radio/vit_patch_generator.py,
        2025-05-26). The corners are aligned unless the configuration says otherwise,
        see `NemotronVLVisionConfig`.

        Raises:
            ValueError: Some values are NaN, which in vLLM's sparse patches of weights
                stands for what does not change. The grid to change is not kept.
        """
        side = self.model.patch_generator.num_rows
        grid = round(pos_embed.shape[1] ** 0.5)
        if grid == side:
            return pos_embed
        missing = pos_embed.isnan()
        if missing.any() and not missing.all():
            raise ValueError(
                "A sparse patch must have all values of pos_embed or none of them, "
                "because its grid is resized when it is loaded."
            )
        image = pos_embed.float().reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        image = F.interpolate(
            image, (side, side), mode="bilinear", align_corners=self.align_corners
        )
        return image.flatten(2).transpose(1, 2)
