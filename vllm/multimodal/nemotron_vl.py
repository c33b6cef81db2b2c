# SPDX-License-Identifier: Apache-2.0
"""Reading of images: what a user passes becomes an 8-bit RGB image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataParser,
)

try:
    from vllm.multimodal.image import open_image
except ImportError:  # vLLM < 0.32: its loader opens whatever Pillow opens
    from PIL.Image import open as open_image

from .nemotron_vl_embeddings import (
    EMBEDDING_FIELDS,
    EMBEDS,
    check_embeddings,
    count_embedded,
    images_encoded_elsewhere,
)
from .nemotron_vl_repeats import LazyImage

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pixels. The time and the memory of resampling grow with the sides, too.
LONGEST_SIDE = 1 << 17

_BAND_PIXELS = 1 << 20

# The 8-bit level of each 16-bit level.
_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB as it is displayed, with its EXIF rotation.

    Transparent pixels are drawn on white. Grey levels of 16 and 32 bits are
    scaled from 0..65535, float ones from 0..1. PIL would clip them to white.

    Raises:
        VLLMValidationError: The image has no pixels, more than
            ``VLLM_MAX_IMAGE_PIXELS``, a side of more than `LONGEST_SIDE`, or it
            cannot be decoded.
    """
    check_size(image)  # before it is decoded
    if isinstance(image, LazyImage):
        return image
    with damage_is_the_clients():
        image.load()
        turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
        if turn is not None:  # `ImageOps.exif_transpose` writes all Exif data anew
            image = image.transpose(turn)
            image.info = {k: v for k, v in image.info.items() if k == "transparency"}
        if image.mode.startswith(("I", "F")):
            image = _by_bands(image, "L", _to_8_bits)
        if image.has_transparency_data:
            return _by_bands(image, "RGB", _on_white)
        return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def damage_is_the_clients() -> Iterator[None]:
    """While an image is decoded, which is the cause of what is raised.

    Raises:
        VLLMValidationError: It cannot be decoded.
    """
    try:
        yield
    except MemoryError:
        raise  # the server's problem, not the image's
    except Exception as error:  # Pillow raises all kinds for damaged files
        raise VLLMValidationError(
            f"The image cannot be decoded: {error}", parameter="image"
        ) from error


def check_size(image: Image.Image) -> None:
    """Refuse an image that was opened, but not decoded.

    Raises:
        VLLMValidationError: It has no pixels, more than ``VLLM_MAX_IMAGE_PIXELS``, or
            a side of more than `LONGEST_SIDE`.
    """
    if problem := _size_problem(*image.size):
        raise VLLMValidationError(problem, parameter="image")


def _size_problem(width: int, height: int) -> str | None:
    limit = envs.VLLM_MAX_IMAGE_PIXELS
    if 0 in (width, height):
        return f"The image is {width}x{height} pixels: it has no content."
    if 0 < limit < width * height:
        return (
            f"The image is {width}x{height} pixels; at most {limit} pixels are "
            "allowed (VLLM_MAX_IMAGE_PIXELS)."
        )
    if max(width, height) > LONGEST_SIDE:
        return (
            f"The image is {width}x{height} pixels; a side may have at most "
            f"{LONGEST_SIDE}. Cut it into several images."
        )
    return None


def _by_bands(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Convert an image to another mode, with little memory besides the result."""
    converted = Image.new(mode, image.size)
    height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        band = image.crop((0, top, image.width, bottom))
        converted.paste(convert(band), (0, top))
    return converted


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 or 32 bits, or float ones, as 8-bit levels."""
    levels = np.asarray(image)
    if image.mode == "F":
        levels = np.fmin(np.fmax(levels, 0), 1)  # what is no number becomes 0
        return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    return Image.fromarray(_EIGHT_BITS[levels.clip(0, 65535)])


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


class LoadedImage(MediaWithBytes[Image.Image]):
    """An image that `to_rgb` made of a file. vLLM's loader has clipped its levels."""


class NemotronVLDataParser(MultiModalDataParser):
    """Reads what users pass as images, before vLLM hashes and caches it.

    Unlike vLLM's parser it converts PIL images with `to_rgb`, and it accepts
    uint8 arrays of height x width x channels or channels x height x width.

    Args:
        most_tiles: Tiles that the longest prompt has room for.
        options: Options of `MultiModalDataParser`.
    """

    embedding_fields = EMBEDDING_FIELDS

    def __init__(self, *, most_tiles: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.most_tiles = most_tiles

    @classmethod
    def is_embeddings(cls, data: Any) -> TypeGuard[torch.Tensor | list[torch.Tensor]]:
        """Whether tensors are embeddings. Those of uint8 are pixels."""
        first = data[0] if isinstance(data, (list, tuple)) and data else data
        if isinstance(first, torch.Tensor) and first.dtype == torch.uint8:
            return False
        return super().is_embeddings(data)

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if isinstance(data, Mapping):
            if EMBEDS in data:
                return self._parse_image_data(data[EMBEDS])
            return images_encoded_elsewhere(data, self.most_tiles)
        if data is None or self.is_embeddings(data):
            items = super()._parse_image_data(data)  # type: ignore[arg-type]
            for item in [] if items is None else items.get_all():
                check_embeddings(item)
            return items
        images: list[Any] = [to_image(item) for item in _as_images(data)]
        return ImageProcessorItems(images)  # vLLM's parser would copy and rotate them

    def count_items(self, modality: str, data: Any) -> int:
        """Number of items in what a user passes as images."""
        if data is None:
            return 0
        if isinstance(data, Mapping):
            return count_embedded(data)
        return len(data if self.is_embeddings(data) else _as_images(data))


def _as_images(data: Any) -> Sequence[Any]:
    if isinstance(data, (list, tuple)):
        return data
    if isinstance(data, (np.ndarray, torch.Tensor)) and data.ndim == 4:
        return list(data)
    return [data]


def to_image(item: Any) -> Image.Image | MediaWithBytes[Image.Image] | None:
    """One image of those that `NemotronVLDataParser` accepts, as RGB.

    Raises:
        VLLMValidationError: It is none, is too large, or cannot be decoded.
    """
    if item is None:  # the caller knows that vLLM has this image in its cache
        return None
    if isinstance(item, LoadedImage):
        return item
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
    """Decode 16-bit and float grey images again, with all their levels.

    vLLM's loader converts them to RGB, which clips all levels above 255 to
    white. Its result also holds the bytes of the file, which are read here.
    """
    with open_image(BytesIO(item.original_bytes)) as original:
        if original.mode.startswith(("I", "F")):
            return replace(item, media=to_rgb(original))
    return replace(item, media=to_rgb(item.media))
