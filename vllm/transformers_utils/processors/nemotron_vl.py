# SPDX-License-Identifier: Apache-2.0
"""Pixels and prompt expansion of ``Llama_Nemotron_Nano_VL``.

The prompt format is that of the checkpoint's model card and of vLLM's in-tree
implementation. Pixels stay uint8 until the model conditions them.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from blake3 import blake3
from PIL import Image, ImageOps
from transformers import AutoProcessor, BatchFeature, TokenizersBackend
from transformers.utils import TensorType
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser
from vllm.multimodal.processing import PromptUpdateDetails
from vllm.tokenizers.hf import HfTokenizer

from ..config import NemotronVLConfig
from .nemotron_vl_compat import (
    InternVLChatImageProcessor,
    InternVLChatProcessor,
    open_image,
)
from .nemotron_vl_tiling import (
    IMAGE_SETTINGS,
    RESIZE_RECIPES,
    TileGrid,
    choose_grid,
    image_settings,
    tiles_problem,
    tokens_of_tile,
)

_EXIF_ORIENTATION = 0x0112

# 8-bit levels of 16-bit ones.
_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)

_DIGEST_BYTES = 16
_DIGEST_KEY = os.urandom(32)

# Key in the ``info`` of a picture whose tiles are not to be reused.
NO_REUSE = "nemotron_vl_no_reuse"

_HUB_OPTIONS = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "subfolder",
)


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as it is displayed: EXIF rotation applied, 8-bit RGB.

    Transparent pixels lie on white. 16-bit and 32-bit grey levels are scaled
    from 0..65535 and float ones from 0..1, where PIL would clip them to white.

    Raises:
        VLLMValidationError: The picture has no pixels, more than
            ``VLLM_MAX_IMAGE_PIXELS`` or does not decode.
    """
    pixels, limit = image.width * image.height, envs.VLLM_MAX_IMAGE_PIXELS
    if 0 < limit < pixels:  # before it is decoded
        raise VLLMValidationError(
            f"The image is {image.width}x{image.height} pixels; at most {limit} pixels "
            "are allowed (VLLM_MAX_IMAGE_PIXELS).",
            parameter="image",
        )
    if 0 in image.size:
        raise VLLMValidationError(
            f"The image is {image.width}x{image.height} pixels: it has no content.",
            parameter="image",
        )
    try:
        image.load()
        if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            levels = np.asarray(image).clip(0, 65535)
            image = Image.fromarray(_EIGHT_BITS[levels])
        elif image.mode == "F":
            levels = np.nan_to_num(np.asarray(image)).clip(0, 1)
            image = Image.fromarray(np.rint(levels * 255).astype(np.uint8))
        return _on_white(image)
    except Exception as error:  # Pillow raises all kinds for damaged files
        raise VLLMValidationError(
            f"The image cannot be decoded: {error}", parameter="image"
        ) from error


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


class NemotronVLDataParser(MultiModalDataParser):
    """Reads what users pass as images, before vLLM hashes and caches it.

    Differs from vLLM's parser in what it makes of PIL pictures (`to_rgb`) and
    in that arrays are pictures too: uint8, height x width x channels or
    channels x height x width.
    """

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None or self.is_embeddings(data):
            items = super()._parse_image_data(data)  # type: ignore[arg-type]
            for item in [] if items is None else items.get_all():
                _check_embeddings(item)
            return items
        pictures: list[Any] = [_to_picture(item) for item in _as_pictures(data)]
        return super()._parse_image_data(pictures)

    def count_images(self, data: Any) -> int:
        """Number of items in what a user passes as images."""
        if data is None:
            return 0
        return len(data if self.is_embeddings(data) else _as_pictures(data))


def _check_embeddings(item: torch.Tensor) -> None:
    """Refuse what would spoil the sums of a whole batch."""
    if not len(item):
        problem = "must have at least one row"
    elif not item.is_floating_point():
        problem = f"must be floating-point numbers, not {item.dtype}"
    elif not item.isfinite().all():
        problem = "must be finite numbers"
    else:
        return
    raise VLLMValidationError(f"image_embeds {problem}.", parameter="image")


def _as_pictures(data: Any) -> Sequence[Any]:
    if isinstance(data, (list, tuple)):
        return data
    if isinstance(data, (np.ndarray, torch.Tensor)) and data.ndim == 4:
        return list(data)
    return [data]


def _to_picture(item: Any) -> Image.Image | MediaWithBytes[Image.Image] | None:
    if item is None:  # a picture that the caller knows to be in the cache
        return None
    if isinstance(item, MediaWithBytes):
        return _with_all_levels(item)
    if isinstance(item, Image.Image):
        return to_rgb(item)
    if not isinstance(item, (np.ndarray, torch.Tensor)):
        raise VLLMValidationError(
            "An image must be a PIL image or a uint8 array, not "
            f"{type(item).__name__}.",
            parameter="image",
        )
    array = np.asarray(item)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4))
    ):
        raise VLLMValidationError(
            "An image given as an array must be uint8 with 1, 3 or 4 channels, but "
            f"is {item.dtype} of shape {tuple(item.shape)}.",
            parameter="image",
        )
    array = array.squeeze(-1) if array.shape[-1] == 1 else array
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _with_all_levels(
    item: MediaWithBytes[Image.Image],
) -> MediaWithBytes[Image.Image]:
    """Undo the clipping of 16-bit and float grey that vLLM's loader does.

    The loader turns them into RGB with all levels above 255 white; the file
    it kept has the others.
    """
    with open_image(BytesIO(item.original_bytes)) as original:
        if original.mode.startswith(("I", "F")):
            return replace(item, media=to_rgb(original))
    return replace(item, media=to_rgb(item.media))


def _resizer(image: Image.Image, recipe: str) -> Callable[[torch.Tensor], None]:
    """A function that writes the resized picture into tiles.

    It takes a contiguous uint8 buffer of shape ``(rows, columns, 3, size,
    size)``, which says how large the picture becomes and how it is cut. A
    picture that has the size already is not resampled.
    """
    # Compiled loops: only processes that see pictures import the compiler.
    from .nemotron_vl_resample import columns_first, doubled, interleaved, resample

    @cache
    def source() -> torch.Tensor:
        pixels = doubled(image) if recipe == "hf" else interleaved(image)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def resize(tiles: torch.Tensor) -> None:
        rows, columns, _, side, _ = tiles.shape
        height, width = size = rows * side, columns * side
        # torch's resampling, which goes along rows first, is the faster one
        # where the picture shrinks.
        inexact = (
            recipe == "fast"
            and width < image.width
            and not columns_first(image, width, height)
        )
        if recipe != "hf" and not inexact and image.size != (width, height):
            resample(image, tiles.numpy())
            return
        pixels = source()
        if pixels.shape[2:] != size:
            mode = "bilinear" if recipe == "hf" else "bicubic"
            pixels = F.interpolate(pixels, size, mode=mode, antialias=True)
        cut = pixels[0, :3].unflatten(2, (columns, side)).unflatten(1, (rows, side))
        tiles.copy_(cut.permute(1, 3, 0, 2, 4))

    return resize


class NemotronVLImageProcessor(InternVLChatImageProcessor):
    """Cuts pictures into square uint8 tiles.

    Args:
        image_size: Side of a tile in pixels.
        min_dynamic_patch: Fewest tiles of a grid.
        max_dynamic_patch: Most tiles of a grid, the thumbnail not counted.
        dynamic_image_size: ``False`` makes every picture one tile.
        use_thumbnail: Append the whole picture as a tile where the grid has
            more than one.
        resize: One of `RESIZE_RECIPES`.
        do_rescale: Return float32 in 0..1 instead of uint8. vLLM turns it off
            where the model conditions the pixels on its device (the default).
        do_normalize: Accepted because vLLM sets it; mean and standard
            deviation belong to the checkpoint and are applied by the model.

    Raises:
        VLLMValidationError: A setting is of the wrong type or out of range.
    """

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
        for name in ("dynamic_image_size", "use_thumbnail", "do_rescale"):
            _check_bool(name, getattr(self, name))
        if resize not in RESIZE_RECIPES:
            raise VLLMValidationError(
                f"resize must be one of {', '.join(map(repr, RESIZE_RECIPES))}, "
                f"but is {resize!r}.",
                parameter="mm_processor_kwargs",
            )
        self.resolve_min_max_num()

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any):
        """Build from ``preprocessor_config.json``; keys not known are skipped."""
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
        """InternVL's rule, with the settings checked.

        The thumbnail is never counted: this model's limit is for the grid.
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
        """Grid of a picture of ``width`` x ``height`` pixels.

        ``overrides`` are those of `resolve_min_max_num`.
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
        """Tiles of an RGB picture, row by row, then the thumbnail.

        Returns:
            uint8 of shape ``(grid.num_tiles, 3, image_size, image_size)``.
        """
        size, (columns, rows, thumbnail) = self.image_size, grid
        tiles = torch.empty((grid.num_tiles, 3, size, size), dtype=torch.uint8)
        resize_into = _resizer(image, self.resize)
        resize_into(tiles[: rows * columns].unflatten(0, (rows, columns)))
        if thumbnail:
            resize_into(tiles[None, -1:])
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
        """Tiles of all pictures, one after the other.

        Returns:
            ``pixel_values_flat`` (tiles, 3, image_size, image_size), uint8 or
            float32; ``image_num_patches`` (pictures), tiles of each;
            ``tile_digests`` (tiles, 16), uint8, see `tile_digest`.
        """
        tiles, digests = [], []
        for image in map(to_rgb, [images] if not isinstance(images, list) else images):
            grid = self.grid_for(
                *image.size,
                min_dynamic_patch=min_dynamic_patch,
                max_dynamic_patch=max_dynamic_patch,
                dynamic_image_size=dynamic_image_size,
            )
            tiles.append(self.tile(image, grid))
            unknown = bytes(_DIGEST_BYTES) if NO_REUSE in image.info else None
            digests += [unknown or tile_digest(tile) for tile in tiles[-1]]
        pixels = torch.cat(tiles)
        if self.do_rescale:
            pixels = pixels.to(torch.float32) / 255
        digest_bytes = np.frombuffer(bytearray().join(digests), np.uint8)
        features = {
            "pixel_values_flat": pixels,
            "image_num_patches": torch.tensor([len(picture) for picture in tiles]),
            "tile_digests": torch.from_numpy(digest_bytes).view(-1, _DIGEST_BYTES),
        }
        return BatchFeature(features, tensor_type=return_tensors)


def tile_digest(tile: torch.Tensor) -> bytes:
    """128-bit digest of a contiguous uint8 tile, other in each process.

    The key keeps a client from making a tile with the digest of another one's.
    """
    return blake3(tile.numpy().data, key=_DIGEST_KEY).digest(length=_DIGEST_BYTES)


class NemotronVLProcessor(InternVLChatProcessor):
    """Joins tokenizer and image processor.

    ``<image>`` is at once the placeholder of a picture in the prompt and the
    token that stands for one image feature; a picture becomes ``<img>``,
    ``image_seq_length`` times ``<image>`` for each tile, and ``</img>``.
    """

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
            ctx_image_token="<image>",
        )
        vocabulary = tokenizer.get_vocab()
        tokens = (self.start_image_token, self.ctx_image_token, self.end_image_token)
        for token in tokens:
            if token not in vocabulary:
                raise ValueError(
                    f"tokenizer.json: the special token {token!r} is missing. "
                    "Use the tokenizer of the checkpoint."
                )
        self._image_token_ids = [vocabulary[token] for token in tokens]

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
        """Token ids that replace a placeholder, made without the tokenizer."""
        if num_patches is not None:
            num_features = num_patches * self.image_seq_length
        assert num_features is not None
        start, context, end = self._image_token_ids
        return PromptUpdateDetails.select_token_id(
            [start, *[context] * num_features, end], context
        )


def image_seq_length(config: NemotronVLConfig) -> int:
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
