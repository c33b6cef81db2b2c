"""Image files: which are read, and how many parts they may have."""

import contextlib
import io
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import ImageMediaIO

from many_parts import KINDS
from support.bad_files import BAD_FILES, MANY_PARTS, SMALL, with_broken_exif
from support.chat import saved
from support.decoders import check_rights, decoders, rights
from support.pngs import chunk
from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb
from vllm_nemotron_vl.multimodal.nemotron_vl_directories import check_exif
from vllm_nemotron_vl.multimodal.nemotron_vl_formats import FORMATS, Refused, format_of
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO, open_checked
from vllm_nemotron_vl.multimodal.nemotron_vl_repeats import LazyImage, Seen
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import png

GOOD = {
    **{f"{kind} {mode}": (kind, mode, {}) for kind in FORMATS for mode in ("L", "RGB")},
    "PNG palette": ("PNG", "P", {}),
    "PNG transparent": ("PNG", "RGBA", {}),
    "JPEG progressive": ("JPEG", "RGB", {"progressive": True}),
    "JPEG CMYK": ("JPEG", "CMYK", {}),
    "JPEG optimised": ("JPEG", "RGB", {"optimize": True, "subsampling": 2}),
    "MPO": ("MPO", "RGB", {}),
    "GIF palette": ("GIF", "P", {}),
    "WebP lossless": ("WEBP", "RGBA", {"lossless": True}),
    "BMP 1 bit": ("BMP", "1", {}),
    **{
        f"TIFF {compression}": ("TIFF", mode, {"compression": compression})
        for compression, mode in {
            "jpeg": "RGB",
            "tiff_lzw": "RGB",
            "tiff_adobe_deflate": "RGB",
            "packbits": "L",
            "group3": "1",
            "group4": "1",
        }.items()
    },
    "TIFF in strips": ("TIFF", "RGB", {"tiffinfo": {278: 1}}),
    "BigTIFF": ("TIFF", "RGB", {"big_tiff": True}),
    **{
        f"TIFF of 6 pages {compression} {mode}": (
            *("TIFF", mode),
            {
                "compression": compression,
                "save_all": True,
                "append_images": [
                    SMALL.convert(mode).rotate(turn) for turn in range(5)
                ],
            },
        )
        for compression, mode in (
            *(("jpeg", "L"), ("jpeg", "RGB"), ("tiff_lzw", "RGB"), ("packbits", "L")),
            *(("tiff_adobe_deflate", "RGB"), ("group4", "1"), (None, "RGB")),
        )
    },
    "TIFF in strips of JPEG": (
        *("TIFF", "RGB"),
        {"compression": "jpeg", "tiffinfo": {278: 16}},
    ),
}


def load(data: bytes, *more_formats: str):
    return CheckedImageIO(ImageMediaIO(), more_formats).load_bytes(data)


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_read_as_vllm_reads_them(name):
    kind, mode, options = GOOD[name]
    data = saved(SMALL.convert(mode), kind, **options)
    found, expected = load(data), ImageMediaIO().load_bytes(data)
    assert np.array_equal(np.asarray(found.media), np.asarray(expected.media))
    assert found.io_config == expected.io_config
    assert found.original_bytes == data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("background", [[255, 255, 255], [255, 0, 0]], ids=str)
def test_files_that_pillow_does_not_decode_are_read_as_others(mode, background):
    settings = ImageMediaIO(rgba_background_color=background)
    assert png.agrees_with_pillow()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    data = saved(Image.fromarray(pixels).convert(mode), "PNG", exif=exif(6))
    by_pillow = CheckedImageIO(settings, ()).load_bytes(data)
    with mock.patch.object(Image, "_getdecoder", side_effect=AssertionError):
        found = CheckedImageIO(settings, (), load=png.load).load_bytes(data)
        seen = CheckedImageIO(settings, (), Seen(9), png.load)
        again = [seen.load_bytes(data) for _ in range(2)][1]
        assert isinstance(again.media, LazyImage)
        for image in (found, again):
            assert np.array_equal(np.asarray(image.media), np.asarray(by_pillow.media))
            assert image.io_config == by_pillow.io_config


@pytest.mark.parametrize("reader", [None, png.load], ids=["Pillow", "ours"])
def test_damage_after_the_pixels_is_the_clients(reader):
    data = saved(SMALL.convert("RGB"), "PNG")
    bad = chunk(b"fcTL", bytes(3)) + data[-12:]
    with pytest.raises(VLLMValidationError, match="APNG contains truncated fcTL chunk"):
        CheckedImageIO(ImageMediaIO(), (), load=reader).load_bytes(data[:-12] + bad)


def test_the_budget_of_a_request_is_charged_before_a_file_is_decoded():
    class Full:
        def charge(self, size: int) -> None:
            raise VLLMValidationError(f"{size} bytes are too many")

    settings = ImageMediaIO()
    settings.decoded_budget = Full()
    decode = mock.Mock()
    with pytest.raises(VLLMValidationError, match="9600 bytes are too many"):
        CheckedImageIO(settings, (), load=decode).load_bytes(saved(SMALL, "PNG"))
    decode.assert_not_called()


def test_all_16_bits_of_a_level_are_used():
    levels = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
    found = load(saved(levels, "PNG")).media
    assert np.asarray(found)[0, :, 0].tolist() == [0, 1, 255]


def test_a_background_of_the_operator_is_kept():
    settings = ImageMediaIO(rgba_background_color=[255, 0, 0])
    data = saved(Image.new("RGBA", (2, 2)), "PNG")
    found = CheckedImageIO(settings, ()).load_bytes(data)
    assert found.media.getpixel((0, 0)) == (255, 0, 0)
    assert found.io_config["rgba_background_color"] == (255, 0, 0)


def exif(rotation: int) -> Image.Exif:
    """As a camera writes them."""
    number = TiffImagePlugin.IFDRational
    tags = Image.Exif()
    tags[274] = rotation
    tags[282] = tags[283] = number(72)
    tags.get_ifd(34665)[37510] = b"a comment of a camera"
    tags.get_ifd(34665)[33434] = number(1, 250)
    tags.get_ifd(34665)[42034] = (number(24), number(70), number(28, 10), number(4))
    tags.get_ifd(34853)[2] = (number(47), number(22), number(3345, 100))
    return tags


@pytest.mark.parametrize("rotation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_an_image_once(kind, rotation):
    options = {} if kind == "JPEG" else {"lossless": True}
    upright = SMALL.convert("RGB")
    data = saved(upright, kind, exif=exif(rotation), **options)
    found = load(data).media
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert np.array_equal(np.asarray(to_rgb(found)), np.asarray(found))


def test_photoshop_data_of_more_than_a_megabyte_are_read():
    """It splits them into segments."""
    resources = b"8BIM\x04\x04\0\0" + struct.pack(">I", 1_200_000) + bytes(1_200_000)
    name, pieces = b"Photoshop 3.0\0", range(0, len(resources), 65_000)
    segments = b"".join(
        struct.pack(">BBH", 0xFF, 0xED, 2 + len(piece)) + piece
        for piece in (name + resources[at : at + 65_000] for at in pieces)
    )
    data = saved(SMALL, "JPEG")
    assert load(data[:2] + segments + data[2:]).media.size == SMALL.size


def test_a_private_tag_of_a_tiff_may_stand_twice():
    whole = saved(SMALL, "TIFF", tiffinfo={50_001: 1, 50_002: 1})
    first, second = (struct.pack("<H", tag) for tag in (50_001, 50_002))
    data = whole.replace(second, first)
    assert data.count(first) == 2
    assert load(data).media.size == SMALL.size
    width, height = (struct.pack("<HH", tag, 4) for tag in (256, 257))
    with pytest.raises(VLLMValidationError, match="its tag 256 stands twice"):
        load(whole.replace(height, width))


def test_what_follows_the_end_of_a_png_is_not_counted():
    data = saved(SMALL, "PNG") + bytes(100_000)
    assert load(data).media.size == SMALL.size


def test_exif_data_that_lead_in_circles_are_read_once():
    """1024 entries of 1024 entries of 1024 entries would take minutes."""
    assert load(KINDS["png_exif_circles"](1024, 900)).media.size == (30, 30)


def test_headers_of_exif_data_are_removed_as_pillow_does():
    """It removes two. The time to remove each grows with their number."""
    entries = b"II*\0" + struct.pack("<IH", 8, 5000)
    header = b"Exif\0\0"
    for count in range(3):
        with pytest.raises(Refused, match="5000 entries"):
            check_exif(header * count + entries)
    check_exif(header * 3 + entries)


def test_what_follows_the_end_of_a_jpeg_is_not_counted():
    """Phones append a film, in which any bytes occur."""
    data = saved(SMALL, "JPEG") + b"\xff\xda\0\2" * 5000
    assert load(data).media.size == SMALL.size


def test_a_broken_entry_of_exif_data_is_passed_over():
    assert load(with_broken_exif(37500)).media.size == SMALL.size


@pytest.mark.parametrize("name", [n for n in BAD_FILES if n.startswith("many parts")])
def test_files_of_too_many_parts_are_refused(name):
    """vLLM's loader, with 4 million pixels and 300,000 parts, takes seconds.

    CPU time of a Xeon with AMX at 2.6 GHz: jpeg_scans more than 30 s,
    tiff_repeated_strips 8.6 s, jpeg_exif_segments 2.8 s (it grows with the square).
    ``benchmarks/hostile.py`` measures them here.
    """
    data, _, cause = BAD_FILES[name]
    with pytest.raises(VLLMValidationError) as error:
        load(data)
    assert cause in str(error.value).lower()


@pytest.mark.parametrize("name", [n for n in BAD_FILES if "many parts" not in n])
def test_the_message_about_a_bad_file_names_its_cause(name):
    data, _, cause = BAD_FILES[name]
    with pytest.raises(VLLMValidationError) as error:
        to_rgb(load(data).media)
    assert cause in str(error.value).lower()
    assert "0x" not in str(error.value).partition(cause)[0]


def test_each_format_has_its_hostile_files():
    assert {name.partition("_")[0].upper() for name in MANY_PARTS} >= {*FORMATS}


# Formats


OTHERS = ("AVIF", "JPEG2000", "PPM", "ICO", "QOI", "TGA")


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_read_if_the_operator_says_so(kind):
    options = {"sizes": [SMALL.size]} if kind == "ICO" else {}
    data = saved(SMALL.convert("RGB"), kind, **options)
    with pytest.raises(VLLMValidationError, match="it is none of PNG"):
        open_checked(data)
    assert open_checked(data, [kind]).size == SMALL.size
    assert load(data, kind).media.mode == "RGB"


def test_all_levels_of_another_format_are_read():
    levels = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
    found = load(saved(levels, "PPM"), "PPM").media
    assert np.asarray(found)[0, :, 0].tolist() == [0, 1, 255]


def test_a_format_without_counts_has_three_seconds_and_no_rights(monkeypatch):
    """QOI is decoded in Python: 25 million pixels take more than ten."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    data = KINDS["qoi"](25_000_000, 25_000_000)
    found: dict[str, str] = {}
    with ThreadPoolExecutor(1) as pool:
        decoded = pool.submit(load, data, "QOI")
        while not decoded.done():
            for child in decoders(script="nemotron_vl_image_decoder.py"):
                with contextlib.suppress(OSError):  # it has ended
                    found = rights(child)
            time.sleep(0.01)
    with pytest.raises(VLLMValidationError, match="ended its decoder .status -24"):
        decoded.result()  # SIGXCPU
    check_rights(found)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "ICNS", "PSD"])
def test_hostile_files_of_another_format_are_read_or_refused(kind):
    make, random = KINDS[kind.lower()], np.random.default_rng(0)
    files = [make(parts, 10**6) for parts in (20, 300_000)]
    small = bytearray(make(20, 900))
    files += [bytes(small[:size]) for size in (12, len(small) // 2, len(small) - 1)]
    for _ in range(4):
        damaged = small.copy()
        for place in random.integers(12, len(small), 9):
            damaged[place] = random.integers(256)
        files.append(bytes(damaged))
    outcomes = set()
    for data in files:
        try:
            outcomes.add(load(data, kind).media.mode)
        except VLLMValidationError as error:
            assert str(error).startswith("The image cannot be read: ")
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}
    assert not decoders(script="nemotron_vl_image_decoder.py")


def test_its_decoder_is_told_the_most_pixels(monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    with pytest.raises(VLLMValidationError, match="60x40 pixels; at most 1000"):
        load(saved(SMALL, "PPM"), "PPM")


def test_a_format_that_was_not_named_stays_refused():
    with pytest.raises(VLLMValidationError, match="cannot be opened as .*, AVIF"):
        open_checked(saved(SMALL, "PPM"), ["AVIF"])


def test_a_file_that_two_readers_know_gets_the_one_of_its_first_bytes():
    """Pillow takes this for IM, a format of text lines, if it may choose."""
    lines = b"II*\0: y\nImage type: Greyscale image\nImage size (x*y): 2*2\n"
    data = lines + bytes(511 - len(lines)) + b"\x1a" + bytes(4)
    assert Image.open(io.BytesIO(data)).format == "IM"
    assert format_of(data) == "TIFF"
    with pytest.raises(VLLMValidationError):
        load(data)
