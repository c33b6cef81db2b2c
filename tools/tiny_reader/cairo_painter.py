"""Draws texts with Cairo, in styles, fonts and on photographs of its own."""

import io
import math
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

from .inks import load_photographs

PHOTOGRAPHS = ("coffee", "brick", "retina", "gravel", "hubble_deep_field")
# Families in the folders ``held_out`` and ``elsewhere`` of tools/fonts.sh.
FAMILIES = (
    *("Caladea", "DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "Inter"),
    *("Liberation Sans", "Liberation Serif", "Liberation Mono", "Roboto"),
    *("Liberation Sans Narrow", "DejaVu Sans Condensed", "Roboto Condensed"),
    *("FreeSans", "FreeSerif", "FreeMono", "Hack", "Noto Sans UI", "Roboto Slab"),
)
SEVEN_SEGMENT = ("DSEG7 Classic", "DSEG7 Modern", "DSEG7 Classic Mini")

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

# Least digit height and character width, as shares of the image's sides.
LEAST_SHARES = (0.04, 0.02)


@dataclass
class _Text:
    """A laid-out text, in pixels of the image."""

    family: str
    slant: int
    weight: int
    em: float
    width: float
    height: float
    places: list[tuple[float, float]]  # of each line: left end and baseline

    @property
    def ascent(self) -> float:
        """Height of a digit in font sizes; digits of DSEG fill theirs."""
        return 1.0 if self.family in SEVEN_SEGMENT else 0.72


class Painter:
    """Draws with Cairo; only the fonts of two folders are visible to it."""

    def __init__(self, fonts: Path) -> None:
        folders = [fonts / "held_out", fonts / "elsewhere"]
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} does not exist; see tools/fonts.sh.")
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

    def draw(
        self, rng: random.Random, lines: list[str], style: str
    ) -> tuple[Image.Image, dict[str, Any]]:
        """An image of the lines, and its facts."""
        text = self._arrange(rng, lines, style)
        size = math.ceil(text.width), math.ceil(text.height)
        surface = self.cairo.ImageSurface(self.cairo.FORMAT_RGB24, *size)
        context = self.cairo.Context(surface)
        ink, paper = self._colours(rng, style)
        self._background(rng, context, size, style, paper)
        context.save()
        angle = 0.0
        if style == "rotated":
            angle = self._turn(rng, context, text, size)
        self._select(context, text)
        context.set_source_rgb(*ink)
        if style == "gradient" and rng.random() < 0.4:
            context.set_source(self._ink_gradient(size, ink))
        for (x, y), line in zip(text.places, lines, strict=True):
            context.move_to(x, y)
            if style in ("screenshot", "plain") and rng.random() < 0.5:
                context.show_text(line)
            else:
                context.text_path(line)
                context.fill()
        context.restore()
        if style == "stencil":
            self._bridges(rng, context, text, paper)
        surface.flush()
        picture = Image.frombytes(
            "RGB", size, bytes(surface.get_data()), "raw", "BGRX", surface.get_stride()
        )
        picture = self._distort(rng, picture, text, style)
        margin = min(
            min(x for x, _ in text.places),
            min(y for _, y in text.places) - text.em * text.ascent,
        )
        contrast = abs(sum(ink) - sum(paper)) / 3
        facts = {
            "height": text.em,
            "margin": max(0.0, margin) / text.em,
            "contrast": contrast,
            "family": text.family,
            "angle": angle,
        }
        return picture, facts

    def _select(self, context, text: _Text) -> None:
        context.select_font_face(text.family, text.slant, text.weight)
        context.set_font_size(text.em)
        options = self.cairo.FontOptions()
        options.set_antialias(self.cairo.ANTIALIAS_GRAY)
        context.set_font_options(options)

    def _arrange(self, rng: random.Random, lines: list[str], style: str) -> _Text:
        cairo = self.cairo
        probe = cairo.Context(cairo.ImageSurface(cairo.FORMAT_A8, 1, 1))
        while True:
            em = rng.uniform(14, 140) if rng.random() < 0.4 else rng.uniform(20, 72)
            family = rng.choice(FAMILIES)
            slant = cairo.FONT_SLANT_NORMAL
            weight = cairo.FONT_WEIGHT_NORMAL
            if style == "screenshot":
                em = float(rng.randint(14, 22))
            elif style == "seven segments":
                family = rng.choice(SEVEN_SEGMENT)
                weight = cairo.FONT_WEIGHT_BOLD
            elif style == "stencil":
                weight = cairo.FONT_WEIGHT_BOLD
                em = max(em, 30.0)
            else:
                if rng.random() < 0.25:
                    weight = cairo.FONT_WEIGHT_BOLD
                if rng.random() < 0.1:
                    slant = cairo.FONT_SLANT_ITALIC
            text = _Text(family, slant, weight, em, 0, 0, [])
            self._select(probe, text)
            widths = [probe.text_extents(line)[4] for line in lines]
            gap = em * rng.uniform(1.2, 1.6)
            inner = max(widths), em * text.ascent + gap * (len(lines) - 1)
            shape = rng.random()
            if style == "screenshot" or shape < 0.2:  # somewhere on a canvas
                text.width = inner[0] * rng.uniform(1.2, 5)
                text.height = max(
                    text.width * rng.choice((0.4, 0.6, 0.75)), 1.4 * inner[1]
                )
                left = rng.uniform(4, max(5, text.width - inner[0] - 4))
                top = rng.uniform(3, max(4, text.height - inner[1] - 3))
            else:
                pixels = rng.choice((2, 5, 10, 20, 40, 100))
                sides = [pixels * rng.uniform(0.7, 1.3) for _ in range(4)]
                if shape > 0.85:  # another margin on each side
                    sides = [
                        rng.choice((2, 8, 30, 80)) * rng.uniform(1, 2) for _ in sides
                    ]
                left, top = sides[0], sides[1]
                text.width = inner[0] + left + sides[2]
                text.height = inner[1] + top + sides[3] + 0.1 * em
            shares = (
                text.ascent * em / text.height,
                min(w / len(s) for w, s in zip(widths, lines, strict=True))
                / text.width,
            )
            if (
                max(text.width, text.height) <= 1600
                and shares[0] >= LEAST_SHARES[0]
                and shares[1] >= LEAST_SHARES[1]
            ):
                break
        align = rng.choice((0, 0, 0.5))
        for number, width in enumerate(widths):
            x = left + align * (inner[0] - width)
            text.places.append((x, top + text.ascent * em + number * gap))
        return text

    @staticmethod
    def _colours(rng: random.Random, style: str) -> tuple[tuple, tuple]:
        """Ink and paper, red, green and blue from 0 to 1."""
        if style in ("plain", "JPEG", "blurred", "rotated", "screenshot", "stencil"):
            ink, paper = rng.uniform(0, 0.2), rng.uniform(0.88, 1)
            if style not in ("plain", "screenshot") and rng.random() < 0.25:
                ink, paper = paper, ink
            return (ink,) * 3, (paper,) * 3
        if style == "white on dark":
            return (rng.uniform(0.85, 1),) * 3, (rng.uniform(0, 0.25),) * 3
        while True:
            ink3 = tuple(rng.random() for _ in range(3))
            paper3 = tuple(rng.random() for _ in range(3))
            if abs(sum(ink3) - sum(paper3)) / 3 >= 0.25:
                return ink3, paper3

    def _background(self, rng, context, size, style, paper) -> None:
        width, height = size
        if style == "photograph":
            self._photograph(rng, context, size, sum(paper) / 3 > 0.5)
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
        """A veiled part of a photograph, so that ink of the other tone is visible."""
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

    def _turn(self, rng, context, text: _Text, size) -> float:
        """Rotate about the middle as far as the text stays inside; degrees."""
        angle = rng.uniform(-8, 8)
        rise = abs(math.sin(math.radians(angle))) * text.width / 2
        spare = min(y for _, y in text.places) - text.ascent * text.em
        if rise > spare and rise > 0:
            angle *= max(0.0, spare / rise)
        context.translate(size[0] / 2, size[1] / 2)
        context.rotate(math.radians(angle))
        context.translate(-size[0] / 2, -size[1] / 2)
        return angle

    def _ink_gradient(self, size, ink):
        gradient = self.cairo.LinearGradient(0, 0, *size)
        middle = sum(ink) / 3
        darker = [c * 0.6 if middle < 0.5 else 1 - (1 - c) * 0.6 for c in ink]
        gradient.add_color_stop_rgb(0, *ink)
        gradient.add_color_stop_rgb(1, *darker)
        return gradient

    def _bridges(self, rng, context, text: _Text, paper) -> None:
        """Two bands of paper across the letters, as in a stencil."""
        context.set_source_rgb(*paper)
        for x, y in text.places:
            band = text.em * rng.uniform(0.03, 0.05)
            level = y - text.em * rng.uniform(0.3, 0.42)
            context.rectangle(x - 2, level, text.width, band)
            context.fill()

    @staticmethod
    def _distort(rng, picture: Image.Image, text: _Text, style: str) -> Image.Image:
        if style == "blurred":
            radius = text.em * rng.uniform(0.015, 0.04)
            picture = picture.filter(ImageFilter.GaussianBlur(radius))
        if style == "JPEG" or (style == "photograph" and rng.random() < 0.5):
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=rng.randint(40, 80))
            picture = Image.open(file).convert("RGB")
        return picture
