"""Typefaces for drawn text: those in a folder, and the one that comes with Pillow."""

import functools
from pathlib import Path

from PIL import ImageFont

CHARACTERS = "0123456789.,:-/$"

Typeface = list[Path | None]  # files; None is the font that comes with Pillow
PILLOW_FONT: list[Typeface] = [[None]]

# Typefaces that are not meant for reading or are invisible at small sizes.
_UNWANTED = (
    *("thin", "hairline", "extralight", "ultralight", "extlt", "outline", "shadow"),
    *("symbol", "math", "dingbat", "ornament", "initial", "swash", "inline", "cond-u"),
    *(
        "lmodern/lmsy",
        "cmuclass",
        "standardsymbols",
        "zapf",
        "chorus",
        "z003",
        "bold-u",
    ),
)


def find_fonts(folder: Path, characters: str = CHARACTERS) -> list[Typeface]:
    """Font files that have the characters, grouped by typeface: each folder is one."""
    groups: dict[Path, Typeface] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in (".ttf", ".otf") or file.is_symlink():
            continue
        name = file.relative_to(folder).as_posix().lower()
        if not any(word in name for word in _UNWANTED) and _has(file, characters):
            groups.setdefault(file.parent, []).append(file)
    if not groups:
        raise FileNotFoundError(f"{folder} has no usable fonts; see tools/fonts.sh.")
    return list(groups.values())


def _has(file: Path, characters: str) -> bool:
    """Whether the font has a distinct glyph for every character."""
    try:
        font = ImageFont.truetype(file, 24)
        glyphs = {bytes(font.getmask(c)) for c in characters}
        missing = bytes(font.getmask("\uffff"))
    except (OSError, ValueError):
        return False
    return len(glyphs) == len(characters) and missing not in glyphs


@functools.cache
def advances_of(
    file: Path | None,
    characters: str = CHARACTERS,
    layout: ImageFont.Layout | None = None,
) -> dict[str, float]:
    """Widths of the characters, as multiples of the font size."""
    font = font_of(file, 100, layout)
    return {c: font.getlength(c) / 100 for c in characters}


@functools.lru_cache(maxsize=2048)
def font_of(
    file: Path | None, size: int, layout: ImageFont.Layout | None = None
) -> ImageFont.FreeTypeFont:
    """A font. Its ``layout`` engine, by default Pillow's best, decides the advances."""
    if file is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(file, size, layout_engine=layout)
