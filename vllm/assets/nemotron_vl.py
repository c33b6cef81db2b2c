# SPDX-License-Identifier: Apache-2.0
"""The embedded checkpoint, and drawings that it can read."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont


class Trained(NamedTuple):
    """What a checkpoint was trained to read, and how well it does."""

    characters: str
    longest: int  # characters of a line
    lines: int
    least_right: int  # of the 20 questions of ``nemotron-vl demo``

    def __str__(self) -> str:
        digits = "digits and " + " ".join(c for c in self.characters if not c.isdigit())
        return f"1 to {self.lines} lines of 1 to {self.longest} characters, {digits}"


# Of the embedded checkpoint.
TINY = Trained("0123456789.,:-/$%", longest=10, lines=3, least_right=17)


def tiny_checkpoint() -> str:
    """Folder of the embedded checkpoint, a tiny Nemotron VL that reads text.

    It was trained on drawn lines as in ``TINY``, and on these questions: "Read the
    text.", "Read line 2.", "Read both." (two images), "How many characters are
    there?" and "What is the first character?".
    """
    return str(Path(__file__).with_name("nemotron_vl_tiny"))


def shipped_pictures() -> list[str]:
    """Files of images that ``tools/shipped_pictures.py`` drew."""
    folder = Path(__file__).with_name("nemotron_vl_pictures")
    return sorted(str(file) for file in folder.iterdir())


def draw_text(
    *lines: str,
    ink: str = "black",
    paper: str = "white",
    font_size: int = 40,
    margins: Sequence[float] | None = None,
) -> Image.Image:
    """Draw lines of text with Pillow's own font.

    Args:
        lines: From top to bottom, aligned left.
        ink: Colour of the text.
        paper: Colour behind it.
        font_size: Height of the font in pixels.
        margins: Pixels on the left, above, on the right and below. By default one
            font size on the left and on the right, and an eighth above and below.

    Returns:
        An RGB image. Each line is 1.3 font sizes high.
    """
    font = ImageFont.load_default(font_size)
    line_height = 1.3 * font_size
    width = max(font.getlength(line) for line in lines)
    left, top, right, bottom = margins or [font_size, font_size / 8] * 2
    size = (
        round(width + left + right),
        round(line_height * len(lines) + top + bottom),
    )
    picture = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        y = top + line_height * (number + 0.5)
        pen.text((left, y), line, ink, font, anchor="lm")
    return picture


def write_clip(
    file: str | Path, *texts: str, size: tuple[int, int] = (160, 120)
) -> None:
    """Write a video whose frames show one text each, a second long.

    The embedded checkpoint reads the text of a frame as that line of an image: "Read
    line 2." asks for the second frame.

    Args:
        file: Its name ends with ``.mp4``.
        texts: In the order of the frames.
        size: Width and height of the frames in pixels.

    Raises:
        OSError: The file cannot be written.
    """
    import cv2
    import numpy as np

    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, code, 1, size)
    if not writer.isOpened():
        raise OSError(f"{file} cannot be written.")
    for text in texts:
        writer.write(np.asarray(draw_text(text).resize(size))[..., ::-1].copy())
    writer.release()
