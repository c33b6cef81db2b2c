"""Images of all modes and forms become RGB, or are refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.image import ImageMediaIO

from support.noise import noise
from support.processing import pixels, process
from vllm_nemotron_vl.multimodal import nemotron_vl as nemotron_vl_reading
from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb
from vllm_nemotron_vl.transformers_utils.processors import (
    nemotron_vl as nemotron_vl_processors,
)


def test_an_image_is_converted_once(processor, monkeypatch):
    """By the parser, or in vLLM's loader; not again when it is cut into tiles."""
    converted = []

    def count(image: Image.Image) -> Image.Image:
        converted.append(image)
        return to_rgb(image)

    monkeypatch.setattr(nemotron_vl_reading, "to_rgb", count)
    monkeypatch.setattr(nemotron_vl_processors, "to_rgb", count)
    process(processor, "<image>", [Image.new("LA", (64, 64))])
    assert len(converted) == 1


def test_an_rgb_image_is_not_copied(processor):
    """vLLM's cache passes the images that it lacks through the parser again."""
    image = Image.new("RGB", (64, 64))
    items = processor.info.parse_mm_data({"image": [image]})
    assert items["image"].get(0) is image


def white_where_transparent() -> np.ndarray:
    levels = np.full((8, 8, 3), 40, np.uint8)
    levels[:4] = 255
    return levels


def half_transparent(mode: str) -> Image.Image:
    image = Image.new("LA", (8, 8), (40, 255))
    image.paste((40, 0), (0, 0, 8, 4))
    if mode == "P":
        indexed = Image.new("P", (8, 8), 1)
        indexed.putpalette([9, 9, 9, 40, 40, 40])
        indexed.paste(0, (0, 0, 8, 4))
        indexed.info["transparency"] = 0
        return indexed
    if mode == "RGB":  # like a PNG that declares one colour transparent
        image = Image.new("RGB", (8, 8), (40, 40, 40))
        image.paste((0, 0, 0), (0, 0, 8, 4))
        image.info["transparency"] = (0, 0, 0)
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_lie_on_white(mode):
    assert np.array_equal(to_rgb(half_transparent(mode)), white_where_transparent())


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
INK = Image.fromarray(255 - RAMP)
CMYK = Image.merge("CMYK", [INK, INK, INK, Image.new("L", (16, 16))])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(np.uint16) * 257),
        Image.fromarray(RAMP.astype(np.int32) * 257),
        Image.fromarray(RAMP.astype(np.float32) / 255),
        Image.fromarray(RAMP).convert("RGBA"),
        Image.fromarray(RAMP).convert("P"),
        Image.fromarray(np.dstack([RAMP] * 3)),
        CMYK,
    ],
    ids=lambda image: image.mode,
)
def test_every_mode_keeps_its_grey_levels(image):
    differences = np.asarray(to_rgb(image)).astype(int) - np.dstack([RAMP] * 3)
    assert np.abs(differences).max() <= (image.mode == "CMYK")  # by its inks


def test_black_and_white_images():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(image)).tolist() == [[[0] * 3, [255] * 3]]


def test_a_shortage_of_memory_is_the_servers(monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    with pytest.raises(MemoryError):
        to_rgb(Image.new("L", (2, 2)))


def test_an_image_may_have_as_many_pixels_as_the_limit(monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "6")
    assert to_rgb(Image.new("L", (2, 3))).size == (2, 3)
    with pytest.raises(VLLMValidationError, match="7x1 pixels; at most 6"):
        to_rgb(Image.new("L", (7, 1)))


def test_exif_rotation_is_applied(processor):
    upright = noise(200, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # display it rotated by 90 degrees clockwise
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    result = process(processor, "<image>", [Image.open(file)])
    assert torch.equal(pixels(result), pixels(process(processor, "<image>", [upright])))


@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_files_from_the_server_keep_16_bit_levels(processor, mode):
    """vLLM's loader makes such a file white, so its bytes are decoded again."""
    levels = RAMP.astype(np.uint16) * 257 if mode == "I;16" else RAMP
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    loaded = ImageMediaIO().load_bytes(file.getvalue())
    grey = Image.fromarray(RAMP).convert("RGB")
    result = process(processor, "<image>", [loaded])
    assert torch.equal(pixels(result), pixels(process(processor, "<image>", [grey])))


@pytest.mark.parametrize(
    "kind",
    [*("hwc", "chw", "torch", "batch", "grey", "hw1"), "one torch", "grey torch"],
)
def test_arrays_are_images(processor, kind):
    image = noise(96, 64)
    array = np.asarray(image)
    given = {
        "hwc": [array],
        "chw": [array.transpose(2, 0, 1)],
        "torch": [torch.from_numpy(array.copy())],
        "batch": array[None],
        "grey": [array[..., 0]],
        "hw1": [array[..., :1]],
        "one torch": torch.from_numpy(array.transpose(2, 0, 1).copy()),
        "grey torch": [torch.from_numpy(array[..., 0].copy())],
    }[kind]
    if kind in ("grey", "hw1", "grey torch"):
        image = Image.fromarray(array[..., 0])
    result = process(processor, "<image>", given)
    expected = process(processor, "<image>", [image])
    assert torch.equal(pixels(result), pixels(expected))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 50)), "0x50 pixels"),
        (np.zeros((8, 8, 3), np.float32), "must be uint8"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        ("photo.png", "must be a PIL image or a uint8 array, not str"),
    ],
    ids=["empty", "float", "two channels", "path"],
)
def test_invalid_images_are_named(processor, image, message):
    with pytest.raises(VLLMValidationError, match=message):
        process(processor, "<image>", [image])


def test_a_truncated_file_is_named(processor, photo):
    file = io.BytesIO()
    photo.save(file, "JPEG")
    broken = Image.open(io.BytesIO(file.getvalue()[:5000]))
    with pytest.raises(VLLMValidationError, match="cannot be decoded"):
        process(processor, "<image>", [broken])
