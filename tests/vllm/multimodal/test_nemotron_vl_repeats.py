"""Images that are sent again: they are decoded only if their pixels are wanted."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import ImageMediaIO

from support.bad_files import SMALL
from support.chat import saved
from vllm_nemotron_vl.multimodal import nemotron_vl_loading as loading
from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO
from vllm_nemotron_vl.multimodal.nemotron_vl_repeats import LazyImage, Seen

PAGE = saved(SMALL.convert("RGB"), "PNG")


@pytest.fixture
def opened(monkeypatch):
    """Sizes of the files that were opened."""
    sizes = []

    def counted(data, *args, open_checked=loading.open_checked):
        sizes.append(len(data))
        return open_checked(data, *args)

    monkeypatch.setattr(loading, "open_checked", counted)
    monkeypatch.setattr(loading, "_QUICK", 9)
    return sizes


def reader(seen: Seen, settings: ImageMediaIO | None = None, **options):
    return CheckedImageIO(settings or ImageMediaIO(**options), (), seen)


def test_a_file_that_was_seen_is_opened_once_its_pixels_are_wanted(opened):
    seen = Seen(9)
    first = reader(seen).load_bytes(PAGE)
    again = reader(seen).load_bytes(PAGE)
    assert opened == [len(PAGE)]
    assert (again.media.size, again.media.mode) == (first.media.size, "RGB")
    assert (again.original_bytes, again.io_config) == (PAGE, first.io_config)
    assert to_rgb(again.media) is again.media
    assert opened == [len(PAGE)]
    assert np.array_equal(np.asarray(again.media), np.asarray(first.media))
    assert opened == [len(PAGE)] * 2


@pytest.mark.parametrize("kind", ["L", "RGBA", "P", "turned"])
def test_what_converts_an_image_does_so_again(kind):
    options = {}
    image = SMALL.convert("RGB")
    if kind == "turned":
        options["exif"] = exif = Image.Exif()
        exif[274] = 6
    else:
        image = image.convert(kind)
    data, seen = saved(image, "PNG", **options), Seen(9)
    first, again = (reader(seen).load_bytes(data) for _ in range(2))
    assert type(again.media) is LazyImage is not type(first.media)
    assert first.media.size == again.media.size
    assert first.io_config == again.io_config
    assert np.array_equal(np.asarray(again.media), np.asarray(first.media))


def test_another_background_is_another_image():
    seen, data = Seen(9), saved(Image.new("RGBA", (2, 2)), "PNG")
    for colour in ((255, 0, 0), (0, 255, 0), (255, 0, 0)):
        found = reader(seen, rgba_background_color=colour).load_bytes(data)
        assert found.media.getpixel((0, 0)) == colour
        assert found.io_config["rgba_background_color"] == colour


def test_a_damaged_file_is_refused_each_time(opened):
    seen, data = Seen(9), PAGE[: len(PAGE) // 2]
    for count in (1, 2):
        with pytest.raises(VLLMValidationError, match="cannot be"):
            reader(seen).load_bytes(data)
        assert len(opened) == count


def test_each_time_it_counts_against_the_budget_of_its_request():
    charged: list[int] = []
    settings = ImageMediaIO()
    settings.decoded_budget = SimpleNamespace(charge=charged.append)
    seen = Seen(9)
    for _ in range(2):
        found = reader(seen, settings).load_bytes(PAGE)
    np.asarray(found.media)
    assert charged == [4 * 60 * 40] * 2


def test_only_so_many_are_remembered(opened):
    seen, other = Seen(1), saved(SMALL.convert("L"), "PNG")
    for data in (PAGE, other, PAGE):
        reader(seen).load_bytes(data)
    assert opened == [len(PAGE), len(other), len(PAGE)]
    for _ in range(2):
        reader(Seen()).load_bytes(PAGE)
    assert len(opened) == 5


def test_a_slow_file_keeps_to_the_threads_of_media(opened, monkeypatch):
    monkeypatch.setattr(loading, "_QUICK", 0)
    seen = Seen(9)
    for _ in range(2):
        reader(seen).load_bytes(PAGE)
    assert len(opened) == 2


def test_a_file_of_a_format_without_counts_is_always_decoded_here(opened):
    seen, data = Seen(9), saved(SMALL, "PPM")
    for _ in range(2):
        CheckedImageIO(ImageMediaIO(), ["PPM"], seen).load_bytes(data)
    assert len(opened) == 2


@pytest.mark.parametrize(
    "use",
    [
        np.asarray,
        copy.deepcopy,
        Image.Image.tobytes,
        Image.Image.copy,
        lambda image: image.resize((8, 8)),
        lambda image: image.crop((1, 1, 9, 9)),
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: pickle.loads(pickle.dumps(image)),
    ],
)
def test_all_that_pillow_does_finds_the_pixels(use):
    upright = SMALL.convert("RGB")
    found = use(LazyImage(upright.size, lambda: upright))
    assert np.array_equal(np.asarray(found), np.asarray(use(upright)))
