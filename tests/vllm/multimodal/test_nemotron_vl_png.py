"""PNG files that libvips decodes: the pixels are Pillow's, and so are the refusals."""

import random
import struct
import zlib

import cv2
import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms, PngImagePlugin
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import ImageMediaIO

from support.chat import saved
from vllm_nemotron_vl.multimodal import nemotron_vl_loading as loading
from vllm_nemotron_vl.multimodal import nemotron_vl_png as png
from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb
from vllm_nemotron_vl.multimodal.nemotron_vl_lazy import ArrayImage
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO, open_checked
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)

NOISE = np.random.default_rng(0).integers(0, 256, (41, 67, 4), np.uint8)
RGB, RGBA = Image.fromarray(NOISE[..., :3]), Image.fromarray(NOISE)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def decode_png(data: bytes) -> Image.Image | None:
    return png.decode_png(data, open_checked(data))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


UPRIGHT, TURNED = exif(1), exif(6)


def load(data: bytes) -> Image.Image:
    return CheckedImageIO(ImageMediaIO(), ()).load_bytes(data).media


@pytest.fixture
def by_pillow(monkeypatch):
    def load_without_vips(data: bytes) -> Image.Image:
        with monkeypatch.context() as patch:
            patch.setattr(loading, "decode_png", lambda data, opened: None)
            return load(data)

    return load_without_vips


def chunks(data: bytes):
    """Name and content of each."""
    place = 8
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4])
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size


def joined(parts) -> bytes:
    """A file of chunks, with their check sums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def with_chunk(name: bytes, content: bytes, image: Image.Image = RGB) -> bytes:
    """It follows the header."""
    header, *rest = chunks(saved(image, "PNG"))
    return joined([header, (name, content), *rest])


def in_pieces(data: bytes) -> bytes:
    """The compressed pixels in many chunks."""
    parts = []
    for name, content in chunks(data):
        size = 7 if name == b"IDAT" else 99
        parts += [
            (name, content[start : start + size])
            for start in range(0, max(1, len(content)), size)
        ]
    return joined(parts)


def with_text(key: str, text: str) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(key, text)
    return saved(RGB, "PNG", pnginfo=texts)


def xmp(orientation: int) -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    return texts


def by_vips(pixels: np.ndarray, **options) -> bytes:
    return pyvips.Image.new_from_array(pixels).pngsave_buffer(keep="none", **options)


def by_opencv(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


DECODED = {
    "RGB": saved(RGB, "PNG"),
    "RGBA": saved(RGBA, "PNG"),
    "opaque RGBA": saved(RGB.convert("RGBA"), "PNG"),
    "stored": saved(RGB, "PNG", compress_level=0),
    "one pixel": saved(RGB.crop((0, 0, 1, 1)), "PNG"),
    "one row": saved(RGB.crop((0, 0, 67, 1)), "PNG"),
    "one column": saved(RGBA.crop((0, 0, 1, 41)), "PNG"),
    "a gradient": saved(Image.linear_gradient("L").convert("RGB"), "PNG"),
    "OpenCV's RGB": by_opencv(NOISE[..., :3]),
    "OpenCV's RGBA": by_opencv(NOISE),
    **{
        f"filter {name}": by_vips(NOISE[..., :3], filter=name)
        for name in ("none", "sub", "up", "avg", "paeth", "all")
    },
    "gamma": with_chunk(b"gAMA", struct.pack(">I", 20000)),
    "chromaticities": with_chunk(
        b"cHRM", struct.pack(">8I", *range(9000, 17000, 1000))
    ),
    "a background": with_chunk(b"bKGD", bytes(6), RGBA),
    "significant bits": with_chunk(b"sBIT", b"\5\6\5"),
    "a colour space": with_chunk(b"sRGB", b"\2"),
    "a profile": saved(RGB, "PNG", icc_profile=PROFILE),
    "a text": with_text("Comment", 90_000 * "a"),
    "Exif alone": saved(RGB.crop((0, 0, 2, 1)), "PNG", exif=UPRIGHT),
    "of macOS": saved(RGB, "PNG", exif=UPRIGHT, pnginfo=xmp(1)),
    "in pieces": in_pieces(saved(RGB, "PNG")),
    "bytes behind the end": saved(RGB, "PNG") + bytes(9),
}

LEFT = {
    **{mode: saved(RGB.convert(mode), "PNG") for mode in ("1", "L", "LA", "P")},
    "16 bits": by_opencv(NOISE[..., :3].astype(np.uint16) * 257),
    "interlaced": by_vips(NOISE, interlace=True),
    "one transparent colour": with_chunk(
        b"tRNS", struct.pack(">3H", *RGB.getpixel((3, 3)))
    ),
    "animated": saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]),
    "turned": saved(RGB, "PNG", exif=TURNED),
    "turned by XMP": saved(RGB, "PNG", pnginfo=xmp(6)),
    "turned at the end": joined(
        [*[*chunks(saved(RGB, "PNG"))][:-1], (b"eXIf", TURNED.tobytes()[6:])]
    ),
}


@pytest.mark.parametrize("name", DECODED)
def test_the_pixels_are_pillows(name, by_pillow):
    data = DECODED[name]
    decoded, expected = decode_png(data), by_pillow(data)
    assert decoded is not None
    assert decoded.mode == "RGBA" or isinstance(decoded, ArrayImage)
    assert np.array_equal(np.asarray(to_rgb(decoded)), np.asarray(expected))
    assert np.array_equal(np.asarray(load(data)), np.asarray(expected))


def test_transparency_is_laid_on_white_only_if_there_is_some():
    assert decode_png(DECODED["RGBA"]).mode == "RGBA"
    assert isinstance(decode_png(DECODED["opaque RGBA"]), ArrayImage)
    for place in ((0, 0), (40, 66)):
        pixels = NOISE.copy()
        pixels[..., 3] = 255
        pixels[(*place, 3)] = 254
        assert decode_png(saved(Image.fromarray(pixels), "PNG")).mode == "RGBA"


MOSTLY_PIXELS = ("RGB", "RGBA", "filter all", "in pieces", "of macOS")


@pytest.mark.parametrize("name", LEFT)
def test_other_files_are_left_to_pillow(name, by_pillow):
    data = LEFT[name]
    assert decode_png(data) is None
    assert np.array_equal(np.asarray(load(data)), np.asarray(by_pillow(data)))


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Cut off, with other bytes, more bytes, or other bytes under right check sums."""
    kind, changed = rng.randrange(4), bytearray(data)
    if kind == 0:
        return data[: rng.randrange(33, len(data))]
    if kind == 1:
        place = rng.randrange(33, len(data))
        return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
    for _ in range(rng.choice((1, 1, 3))):
        changed[rng.randrange(33, len(data))] = rng.randrange(256)
    return bytes(changed) if kind == 2 else joined(chunks(bytes(changed)))


@pytest.mark.parametrize(
    "name",
    ["RGB", "RGBA", "filter all", "in pieces", "a text", "of macOS", "Exif alone"],
)
def test_what_pillow_refuses_is_refused(name, by_pillow):
    """And what it reads in spite of the damage has its pixels."""
    rng, refused = random.Random(name), 0
    for _ in range(400):
        data = damaged(rng, DECODED[name])
        try:
            expected = by_pillow(data)
        except VLLMValidationError:
            with pytest.raises(VLLMValidationError):
                load(data)
            refused += 1
        else:
            assert np.array_equal(np.asarray(load(data)), np.asarray(expected))
    assert 0 < refused < (401 if name in MOSTLY_PIXELS else 350)


def test_without_libvips_pillow_decodes(monkeypatch):
    monkeypatch.setattr(png, "_vips", lambda: None)
    assert decode_png(DECODED["RGB"]) is None
    assert np.array_equal(np.asarray(load(DECODED["RGB"])), NOISE[..., :3])


def test_another_background_is_vllms_part(monkeypatch):
    monkeypatch.setattr(loading, "decode_png", None)
    settings = ImageMediaIO(rgba_background_color=(1, 2, 3))
    clear = saved(Image.new("RGBA", (4, 4)), "PNG")
    found = CheckedImageIO(settings, ()).load_bytes(clear)
    assert found.media.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("recipe", ["fast", "exact", "hf"])
@pytest.mark.parametrize("side", [32, 41])  # of a tile
def test_tiles_are_made_of_the_decoders_own_memory(recipe, side, by_pillow):
    processor = NemotronVLImageProcessor(side, resize=recipe)
    data = saved(RGB.crop((0, 0, 41, 41)), "PNG")
    decoded = decode_png(data)
    found = processor(decoded)["pixel_values_flat"]
    assert decoded._im is None
    assert found.equal(processor(by_pillow(data))["pixel_values_flat"])
