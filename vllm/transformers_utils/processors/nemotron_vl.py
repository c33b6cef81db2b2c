# SPDX-License-Identifier: Apache-2.0
"""Image processor and processor of ``Llama_Nemotron_Nano_VL``.

The prompt format is that of NVIDIA's example of the model
(https://github.com/NVIDIA/Megatron-LM/tree/db8cd9aa3b/examples/multimodal, 2025-06-13)
and of vLLM's in-tree model. Pixels stay uint8 until the model conditions them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature, TokenizersBackend
from transformers.utils import TensorType
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.processing import PromptUpdateDetails
from vllm.tokenizers.hf import HfTokenizer

from ...multimodal.nemotron_vl import to_rgb
from ..configs.nemotron_vl import NemotronVLConfig
from ..configs.nemotron_vl_checks import IMAGE_TOKENS, image_token_ids
from .nemotron_vl_compat import InternVLChatImageProcessor, InternVLChatProcessor
from .nemotron_vl_digest import NO_REUSE, tile_digests
from .nemotron_vl_tiling import (
    IMAGE_SETTINGS,
    RESIZE_RECIPES,
    TileGrid,
    choose_grid,
    image_settings,
    tiles_problem,
    tokens_of_tile,
)

_HUB_OPTIONS = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "subfolder",
)


class NemotronVLImageProcessor(InternVLChatImageProcessor):
    """Cuts images into square uint8 tiles.

    Args:
        image_size: Side of a tile in pixels.
        min_dynamic_patch: Fewest tiles of a grid.
        max_dynamic_patch: Most tiles of a grid, the thumbnail not counted.
        dynamic_image_size: ``False`` makes every image one tile.
        use_thumbnail: Append the whole image as one more tile if the grid has
            more than one tile.
        resize: One of `RESIZE_RECIPES`.
        do_rescale: Return float32 in 0..1 instead of uint8. By default vLLM
            switches it off, and the model conditions the pixels on its device.
        do_normalize: Accepted because vLLM sets it, without effect. The model
            applies the checkpoint's mean and standard deviation.
        do_convert_rgb: Convert images with `to_rgb`. In an engine the parser of its
            inputs has done so already.

    Raises:
        VLLMValidationError: A setting is of the wrong type or out of range.
    """

    recipes: Sequence[str] = RESIZE_RECIPES

    def __init__(
        self,
        image_size: int,
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 12,
        dynamic_image_size: bool = True,
        use_thumbnail: bool = True,
        *,
        resize: str = RESIZE_RECIPES[0],
        do_rescale: bool = True,
        do_normalize: bool = True,
        do_convert_rgb: bool = True,
    ) -> None:
        super().__init__(
            image_size,
            min_dynamic_patch,
            max_dynamic_patch,
            dynamic_image_size,
            use_thumbnail,
        )
        self.resize = resize
        self.do_rescale = do_rescale
        self.do_normalize = do_normalize
        self.do_convert_rgb = do_convert_rgb
        for name in ("dynamic_image_size", "use_thumbnail", "do_rescale"):
            _check_bool(name, getattr(self, name))
        if resize not in self.recipes:
            raise VLLMValidationError(
                f"resize must be one of {', '.join(map(repr, self.recipes))}, "
                f"but is {resize!r}.",
                parameter="mm_processor_kwargs",
            )
        self.resolve_min_max_num()

    @staticmethod
    def check_names(given: Iterable[str]) -> None:
        """Compare the names in ``mm_processor_kwargs`` with the known ones.

        Raises:
            VLLMValidationError: One of them is unknown.
        """
        known = {*IMAGE_SETTINGS, "do_rescale", "do_normalize"} - {"image_size"}
        if unknown := {*given} - known:
            raise VLLMValidationError(
                f"Unknown mm_processor_kwargs {sorted(unknown)}; "
                f"known are {sorted(known)}.",
                parameter="mm_processor_kwargs",
            )

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any):
        """Build from ``preprocessor_config.json``; unknown keys are ignored."""
        settings = image_settings(image_processor_dict)
        settings |= {k: v for k, v in kwargs.items() if k in IMAGE_SETTINGS}
        if kwargs.get("return_unused_kwargs"):
            return cls(**settings), {}
        return cls(**settings)

    def resolve_min_max_num(
        self,
        *,
        min_dynamic_patch: int | None = None,
        max_dynamic_patch: int | None = None,
        dynamic_image_size: bool | None = None,
        use_thumbnail: bool | None = None,
    ) -> tuple[int, int]:
        """InternVL's rule for the limits, with checks of the settings.

        Unlike InternVL's, the limits of this model do not count the thumbnail.
        """
        fewest = _given(min_dynamic_patch, self.min_dynamic_patch)
        most = _given(max_dynamic_patch, self.max_dynamic_patch)
        _check_bool("dynamic_image_size", _given(dynamic_image_size, False))
        _check_tiles("min_dynamic_patch", fewest, least=1)
        _check_tiles("max_dynamic_patch", most, least=fewest)
        return super().resolve_min_max_num(
            min_dynamic_patch=fewest,
            max_dynamic_patch=most,
            dynamic_image_size=dynamic_image_size,
            use_thumbnail=False,
        )

    def grid_for(self, width: int, height: int, **overrides: Any) -> TileGrid:
        """Grid of an image of ``width`` x ``height`` pixels.

        Args:
            width: Pixels.
            height: Pixels.
            overrides: Arguments of `resolve_min_max_num`.
        """
        min_tiles, max_tiles = self.resolve_min_max_num(**overrides)
        return choose_grid(
            width,
            height,
            image_size=self.image_size,
            min_tiles=min_tiles,
            max_tiles=max_tiles,
            use_thumbnail=self.use_thumbnail,
            resize=self.resize,
        )

    def tile(self, image: Image.Image, grid: TileGrid) -> torch.Tensor:
        """Tiles of an RGB image, row by row, then the thumbnail.

        Returns:
            uint8 of shape ``(grid.num_tiles, 3, image_size, image_size)``.
        """
        size, (columns, rows, thumbnail) = self.image_size, grid
        tiles = torch.empty((grid.num_tiles, 3, size, size), dtype=torch.uint8)
        buffers = [tiles[: rows * columns].unflatten(0, (rows, columns))]
        if thumbnail:
            buffers.append(tiles[None, -1:])
        # Compiled loops: only processes that see images import the compiler.
        from .nemotron_vl_recipes import resize

        resize(image, self.resize, buffers)
        return tiles

    def __call__(
        self,
        images: Image.Image | list[Image.Image],
        *,
        min_dynamic_patch: int | None = None,
        max_dynamic_patch: int | None = None,
        dynamic_image_size: bool | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tiles of all images, one after the other.

        Returns:
            ``pixel_values_flat`` (tiles, 3, image_size, image_size), uint8 or
            float32; ``image_num_patches`` (images), the number of tiles of each;
            ``tile_digests`` (tiles, 16), uint8, see `tile_digest`.
        """
        images = images if isinstance(images, list) else [images]
        tiles = []
        for image in map(to_rgb, images) if self.do_convert_rgb else images:
            grid = self.grid_for(
                *image.size,
                min_dynamic_patch=min_dynamic_patch,
                max_dynamic_patch=max_dynamic_patch,
                dynamic_image_size=dynamic_image_size,
            )
            tiles.append(self.tile(image, grid))
        pixels = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        if self.do_rescale:
            pixels = pixels.to(torch.float32) / 255
        features = {
            "pixel_values_flat": pixels,
            "image_num_patches": torch.tensor([len(image) for image in tiles]),
            "tile_digests": tile_digests(
                tiles, [NO_REUSE not in image.info for image in images]
            ),
        }
        return BatchFeature(features, tensor_type=return_tensors)


class NemotronVLProcessor(InternVLChatProcessor):
    """Joins tokenizer and image processor.

    In a prompt, ``<image>`` is the placeholder of an image. It is replaced by
    ``<img>``, then ``image_seq_length`` ``<image>`` tokens for each tile, and
    ``</img>``. There, each ``<image>`` stands for one image feature.
    """

    image_tokens: Sequence[str] = IMAGE_TOKENS
    image_processor_class = NemotronVLImageProcessor

    def __init__(
        self,
        image_processor: NemotronVLImageProcessor,
        tokenizer: HfTokenizer,
        *,
        image_seq_length: int,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            image_seq_length=image_seq_length,
            ctx_image_token=self.image_tokens[1],
        )
        vocabulary = tokenizer.get_vocab()
        self._image_token_ids = image_token_ids(vocabulary, self.image_tokens)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, **kwargs: Any
    ) -> "NemotronVLProcessor":
        """Build from a checkpoint's data files, locally or from the hub.

        ``trust_remote_code`` is accepted and has no effect.
        """
        hub = {k: v for k, v in kwargs.items() if k in _HUB_OPTIONS}
        config = NemotronVLConfig.from_pretrained(path, **hub)
        return cls(
            NemotronVLImageProcessor.from_pretrained(path, **hub),
            TokenizersBackend.from_pretrained(path, **hub),
            image_seq_length=image_seq_length(config),
        )

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        grid = self.image_processor.grid_for(image_width, image_height)
        return grid.num_tiles * self.image_seq_length

    def get_image_repl(
        self, num_patches: int | None, num_features: int | None = None
    ) -> PromptUpdateDetails:
        """Token ids that replace a placeholder; the tokenizer is not called."""
        if num_patches is not None:
            num_features = num_patches * self.image_seq_length
        assert num_features is not None
        start, context, end = self._image_token_ids

        def is_embed(*_: Any) -> torch.Tensor:
            # vLLM's own comparison of all ids takes a third of a cached image's time.
            mask = torch.ones(num_features + 2, dtype=torch.bool)
            mask[0] = mask[-1] = False
            return mask

        return PromptUpdateDetails([start, *[context] * num_features, end], is_embed)


def image_seq_length(config: Any) -> int:
    """Image tokens of one tile after the pixel shuffle."""
    return tokens_of_tile(
        config.force_image_size,
        config.vision_config.patch_size,
        config.downsample_ratio,
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise VLLMValidationError(
            f"{name} must be true or false, but is {value!r}.",
            parameter="mm_processor_kwargs",
        )


def _check_tiles(name: str, value: object, least: int) -> None:
    if problem := tiles_problem(name, value, least):
        raise VLLMValidationError(problem, parameter="mm_processor_kwargs")


AutoProcessor.register(NemotronVLConfig, NemotronVLProcessor, exist_ok=True)
