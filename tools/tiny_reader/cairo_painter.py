"""Draws texts with Cairo, in styles, fonts and on photographs of its own."""

import io
import math
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFilter

from . import cairo_layout
from .cairo_layout import Extents, Layout, Text, arrange
from .inks import load_photographs

PHOTOGRAPHS = ("coffee", "brick", "retina", "gravel", "hubble_deep_field")

# What the styles are and how often each is drawn.
STYLES = {
    "plain": 0.42,
    "white on dark": 0.08,
    "coloured": 0.1,
    "gradient": 0.08,
    "photograph": 0.07,
    "blurred": 0.04,
    "JPEG": 0.06,
    "rotated": 0.07,
    "screenshot": 0.04,
    "seven segments": 0.02,
    "stencil": 0.02,
}
MAX_ANGLE = 8.0  # degrees

# Least difference of the luminance, from 0 to 1, of the ink and of what surrounds it.
LEAST_CONTRAST = 0.2

Colour = tuple[float, float, float]  # red, green and blue from 0 to 1


class Painter:
    """Draws with Cairo; only the fonts of two folders are visible to it.

    Raises:
        FileNotFoundError: A folder or a family of fonts is missing. Cairo would take
            another one without a word.
    """

    def __init__(self, fonts: Path) -> None:
        folders = [fonts / "held_out", fonts / "elsewhere"]
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} does not exist; see tools/fonts.sh.")
        wanted = {
            *cairo_layout.FAMILIES,
            *cairo_layout.THIN,
            *cairo_layout.SEVEN_SEGMENT,
        }
        if missing := wanted - _families(folders):
            raise FileNotFoundError(
                f"{fonts} lacks {', '.join(sorted(missing))}; see tools/fonts.sh."
            )
        # Fontconfig reads its environment when Cairo first asks for a font.
        self.cache = tempfile.TemporaryDirectory()
        config = Path(self.cache.name) / "fonts.conf"
        dirs = "".join(f"<dir>{folder.resolve()}</dir>" for folder in folders)
        config.write_text(
            f"<fontconfig>{dirs}<cachedir>{self.cache.name}</cachedir></fontconfig>"
        )
        os.environ["FONTCONFIG_FILE"] = str(config)
        import cairocffi

        self.cairo = cairocffi
        self.photographs = load_photographs(PHOTOGRAPHS)
        self.probe = cairocffi.Context(
            cairocffi.ImageSurface(cairocffi.FORMAT_A8, 1, 1)
        )

    def draw(
        self, rng: random.Random, lines: list[str], style: str
    ) -> tuple[Image.Image, dict[str, Any]]:
        """An image of the lines, and its facts. It has at least ``LEAST_CONTRAST``."""
        while True:
            layout = arrange(rng, lines, style, self._measure)
            image, mask, angle = self._paint(rng, layout, lines, style)
            contrast = contrast_of(image, mask, layout.text.em)
            if contrast >= LEAST_CONTRAST:
                break
        facts = {
            "height": layout.text.em,
            "margin": least_margin(mask) / layout.text.em,
            "contrast": contrast,
            "family": layout.text.family,
            "layout": layout.name,
            "angle": angle,
        }
        return self._distort(rng, image, layout.text.em, style), facts

    def _paint(
        self, rng: random.Random, layout: Layout, lines: list[str], style: str
    ) -> tuple[Image.Image, np.ndarray, float]:
        """The image, the mask of its ink (height, width), and the angle in degrees."""
        cairo = self.cairo
        size = math.ceil(layout.width), math.ceil(layout.height)
        surface = cairo.ImageSurface(cairo.FORMAT_RGB24, *size)
        mask = cairo.ImageSurface(cairo.FORMAT_A8, *size)
        ink, paper = _colours(rng, style)
        context = cairo.Context(surface)
        self._background(rng, context, size, style, paper, sum(ink) < sum(paper))
        context.set_source_rgb(*ink)
        if style == "gradient" and rng.random() < 0.4:
            context.set_source(self._ink_gradient(size, ink, sum(ink) < sum(paper)))
        angle = _angle(rng, layout) if style == "rotated" else 0.0
        hinted = style in ("screenshot", "plain") and rng.random() < 0.5
        for target in (context, cairo.Context(mask)):
            _turn(target, layout, angle)
            self._write(target, layout, lines, hinted)
        if style == "stencil":
            _bridges(rng, context, layout, paper)
        for drawn in (surface, mask):
            drawn.flush()
        stride = surface.get_stride()
        image = Image.frombytes(
            "RGB", size, bytes(surface.get_data()), "raw", "BGRX", stride
        )
        levels = np.frombuffer(bytes(mask.get_data()), np.uint8)
        levels = levels.reshape(size[1], mask.get_stride())[:, : size[0]]
        return image, levels, angle

    def _measure(self, text: Text, line: str) -> Extents:
        self._select(self.probe, text)
        _, top, _, height, advance, _ = self.probe.text_extents(line)
        return Extents(advance, -top, max(0.0, top + height))

    def _select(self, context, text: Text) -> None:
        cairo = self.cairo
        context.select_font_face(
            text.family,
            cairo.FONT_SLANT_ITALIC if text.italic else cairo.FONT_SLANT_NORMAL,
            cairo.FONT_WEIGHT_BOLD if text.bold else cairo.FONT_WEIGHT_NORMAL,
        )
        context.set_font_size(text.em)
        options = cairo.FontOptions()
        options.set_antialias(cairo.ANTIALIAS_GRAY)
        context.set_font_options(options)

    def _write(self, context, layout: Layout, lines: list[str], hinted: bool) -> None:
        self._select(context, layout.text)
        for (x, y), line in zip(layout.places, lines, strict=True):
            context.move_to(x, y)
            if hinted:
                context.show_text(line)
            else:
                context.text_path(line)
                context.fill()

    def _background(self, rng, context, size, style, paper, is_light: bool) -> None:
        width, height = size
        if style == "photograph":
            self._photograph(rng, context, size, is_light)
            return
        if style == "gradient":
            end = (width, rng.choice((0, height)))
            gradient = self.cairo.LinearGradient(0, 0, *end)
            other = [min(1, max(0, c + rng.uniform(-0.15, 0.15))) for c in paper]
            gradient.add_color_stop_rgb(0, *paper)
            gradient.add_color_stop_rgb(1, *other)
            context.set_source(gradient)
        else:
            context.set_source_rgb(*paper)
        context.paint()
        if style == "screenshot":
            context.set_source_rgb(0.75, 0.75, 0.78)
            context.set_line_width(1)
            context.rectangle(0.5, 0.5, width - 1, height - 1)
            context.stroke()

    def _photograph(self, rng, context, size, is_light: bool) -> None:
        """A part of a photograph under a veil, light below dark ink and dark else."""
        photo = Image.fromarray(rng.choice(self.photographs))
        width, height = size
        scale = max(width / photo.width, height / photo.height) * rng.uniform(1, 2)
        photo = photo.resize(
            (
                max(width, round(photo.width * scale)),
                max(height, round(photo.height * scale)),
            )
        )
        left = rng.randint(0, photo.width - width)
        top = rng.randint(0, photo.height - height)
        cut = photo.crop((left, top, left + width, top + height)).convert("RGBA")
        red, green, blue, alpha = cut.split()
        data = bytearray(Image.merge("RGBA", (blue, green, red, alpha)).tobytes())
        surface = self.cairo.ImageSurface(
            self.cairo.FORMAT_RGB24, width, height, data=data, stride=4 * width
        )
        context.set_source_surface(surface)
        context.paint()
        veil = 1.0 if is_light else 0.0
        context.set_source_rgba(veil, veil, veil, rng.uniform(0.35, 0.75))
        context.paint()

    def _ink_gradient(self, size, ink: Colour, is_dark: bool):
        """From the ink to one that differs more from the paper."""
        gradient = self.cairo.LinearGradient(0, 0, *size)
        end = [c * 0.6 if is_dark else 1 - (1 - c) * 0.6 for c in ink]
        gradient.add_color_stop_rgb(0, *ink)
        gradient.add_color_stop_rgb(1, *end)
        return gradient

    @staticmethod
    def _distort(rng, image: Image.Image, em: float, style: str) -> Image.Image:
        if style == "blurred":
            radius = em * rng.uniform(0.015, 0.04)
            image = image.filter(ImageFilter.GaussianBlur(radius))
        if style == "JPEG" or (style == "photograph" and rng.random() < 0.5):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=rng.randint(40, 80))
            image = Image.open(file).convert("RGB")
        return image


def _families(folders: list[Path]) -> set[str]:
    """Names of the families in folders, as fontconfig finds them."""
    from fontTools.ttLib import TTFont

    found = set()
    for folder in folders:
        for file in folder.rglob("*.[ot]tf"):
            names = TTFont(file, lazy=True)["name"].names
            found |= {str(name) for name in names if name.nameID in (1, 16)}
    return found


def _colours(rng: random.Random, style: str) -> tuple[Colour, Colour]:
    """Ink and paper."""
    if style in ("plain", "JPEG", "blurred", "rotated", "screenshot", "stencil"):
        ink, paper = rng.uniform(0, 0.2), rng.uniform(0.88, 1)
        if style not in ("plain", "screenshot") and rng.random() < 0.25:
            ink, paper = paper, ink
        return (ink, ink, ink), (paper, paper, paper)
    if style == "white on dark":
        ink, paper = rng.uniform(0.85, 1), rng.uniform(0, 0.25)
        return (ink, ink, ink), (paper, paper, paper)
    while True:
        inks = rng.random(), rng.random(), rng.random()
        papers = rng.random(), rng.random(), rng.random()
        if abs(sum(inks) - sum(papers)) / 3 >= 0.25:
            return inks, papers


def _angle(rng: random.Random, layout: Layout) -> float:
    """Degrees by which the text can turn about its middle and stay inside."""
    left, top, right, bottom = layout.box
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    rise = math.sin(math.radians(abs(angle))) * (right - left) / 2
    spare = min(top, layout.height - bottom)
    return angle * min(1.0, spare / rise) if rise > 0 else 0.0


def _turn(context, layout: Layout, angle: float) -> None:
    left, top, right, bottom = layout.box
    middle = (left + right) / 2, (top + bottom) / 2
    context.translate(*middle)
    context.rotate(math.radians(angle))
    context.translate(-middle[0], -middle[1])


def _bridges(rng: random.Random, context, layout: Layout, paper: Colour) -> None:
    """A band of paper across each line, as in a stencil."""
    em = layout.text.em
    context.set_source_rgb(*paper)
    for x, y in layout.places:
        band = em * rng.uniform(0.03, 0.05)
        level = y - em * rng.uniform(0.3, 0.42)
        context.rectangle(x - 2, level, layout.width, band)
        context.fill()


def contrast_of(image: Image.Image, mask: np.ndarray, em: float) -> float:
    """Difference of the mean luminance, from 0 to 1, of the ink and of what is near.

    Args:
        image: The image.
        mask: Its ink, (height, width) uint8.
        em: Font size in pixels. A tenth of it is near.
    """
    levels = np.asarray(image.convert("L"), np.float32) / 255
    spread = 2 * max(2, round(em / 10)) + 1
    near = cv2.dilate(mask, np.ones((spread, spread), np.uint8)) > 0
    inked = mask > 0.7 * mask.max()
    return float(abs(levels[inked].mean() - levels[near & (mask == 0)].mean()))


def least_margin(mask: np.ndarray) -> int:
    """Pixels between the ink and the nearest side of the image."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    height, width = mask.shape
    return int(min(rows[0], columns[0], height - 1 - rows[-1], width - 1 - columns[-1]))
