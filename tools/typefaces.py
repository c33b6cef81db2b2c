"""Typefaces for drawn text: those in a folder, and the one that comes with Pillow."""

import functools
from pathlib import Path

from PIL import ImageFont

CHARACTERS = "0123456789.,:-/$"

# Stands for the font that comes with Pillow.
PILLOW_FONT: list[list[Path | None]] = [[None]]

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


def find_fonts(folder: Path) -> list[list[Path | None]]:
    """Readable font files, grouped by typeface. Each folder is a typeface."""
    groups: dict[Path, list[Path | None]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() not in (".ttf", ".otf") or file.is_symlink():
            continue
        name = file.relative_to(folder).as_posix().lower()
        if not any(word in name for word in _UNWANTED) and _is_usable(file):
            groups.setdefault(file.parent, []).append(file)
    if not groups:
        raise FileNotFoundError(f"{folder} has no usable fonts; see tools/fonts.sh.")
    return list(groups.values())


def _is_usable(file: Path) -> bool:
    """Whether the font has a distinct glyph for every character."""
    try:
        font = ImageFont.truetype(file, 24)
        glyphs = {bytes(font.getmask(c)) for c in CHARACTERS}
        missing = bytes(font.getmask("\uffff"))
    except (OSError, ValueError):
        return False
    return len(glyphs) == len(CHARACTERS) and missing not in glyphs


@functools.cache
def advances_of(file: Path | None) -> dict[str, float]:
    """Widths of the characters, as multiples of the font size."""
    font = font_of(file, 100)
    return {c: font.getlength(c) / 100 for c in CHARACTERS}


@functools.lru_cache(maxsize=256)
def font_of(file: Path | None, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
