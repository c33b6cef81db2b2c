"""Which pages are blank."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from nemotron_vl.images.blank import is_blank
from nemotron_vl.images.drawn import draw_text

A4_AT_200_DPI = (1654, 2339)


def page(paper: int = 255, **marks) -> Image.Image:
    """A scanned page: grey paper, noise of so many levels, text, gradient of light."""
    levels = np.full(A4_AT_200_DPI[::-1], float(paper))
    levels += np.random.default_rng(1).normal(0, marks.get("noise", 0), levels.shape)
    levels -= np.linspace(0, marks.get("shade", 0), levels.shape[1])
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if text := marks.get("text"):
        size = round(marks.get("points", 8) * 200 / 72)
        font = ImageFont.load_default(size)
        place = (image.width // 2, image.height - 150)
        ImageDraw.Draw(image).text(place, text, marks.get("ink", 0), font)
    for x in range(marks.get("specks", 0)):
        image.putpixel((200 * x + 100, 300), 0)
    return image


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


BLANK = {
    "white": page,
    "grey": lambda: page(190),
    "black": lambda: page(0),
    "noise of a scanner": lambda: page(235, noise=12),
    "uneven light": lambda: page(235, noise=5, shade=40),
    "specks of dust": lambda: page(235, noise=5, specks=5),
    "colour": lambda: Image.new("RGB", (700, 900), "khaki"),
    "transparent": lambda: Image.new("RGBA", (700, 900)),
    "16 bits": lambda: Image.fromarray(np.full((900, 700), 60000, np.uint16)),
    "1 bit": lambda: Image.new("1", (2000, 3000), 1),
    "palette": lambda: Image.new("RGB", (700, 900), "tan").quantize(4),
    "pale yellow": lambda: draw_text("too faint", ink="yellow"),
    "JPEG": lambda: as_jpeg(page(235, noise=8)),
    "a pixel": lambda: Image.new("L", (1, 1)),
}
MARKED = {
    "page number": lambda: page(text="7"),
    "one": lambda: page(text="1"),
    "noise and a number": lambda: page(235, noise=12, text="1"),
    "grey print": lambda: page(255, text="7", ink=150),
    "pencil": lambda: page(235, noise=5, text="seen", ink=180, points=12),
    "white on black": lambda: page(0, text="7", ink=255),
    "coarse scan": lambda: page(text="7").resize((595, 842)),
    "16 bits": lambda: Image.fromarray(
        np.asarray(page(text="7")).astype(np.uint16) * 257
    ),
    "1 bit": lambda: page(text="7").convert("1"),
    "JPEG": lambda: as_jpeg(page(235, noise=8, text="7")),
}


@pytest.mark.parametrize("name", BLANK)
def test_a_page_without_marks_is_blank(name):
    assert is_blank(BLANK[name]())


@pytest.mark.parametrize("name", MARKED)
def test_a_page_with_a_page_number_is_not(name):
    assert not is_blank(MARKED[name]())


@pytest.mark.parametrize(("marks", "blank"), [(5, True), (6, False)])
@pytest.mark.parametrize(("contrast", "clear"), [(32, False), (33, True)])
def test_the_threshold(marks, blank, contrast, clear):
    image = Image.new("L", (1000, 700), 200)
    for x in range(marks):
        image.putpixel((x * 50, 300), 200 - contrast)
    assert is_blank(image) == (blank or not clear)
