# SPDX-License-Identifier: Apache-2.0
"""The C-RADIO tower for tiles of one size, built of vLLM's layers."""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.intern_vit import InternVisionEncoder
from vllm.model_executor.models.radio import RadioModel
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

from .nemotron_vl_blocks import TowerBlock, compilation_problem

logger = init_logger("vllm.model_executor.models.nemotron_vl_tower")


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
