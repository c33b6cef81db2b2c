# SPDX-License-Identifier: Apache-2.0
"""The embedded checkpoint, and drawings that it can read."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


def tiny_checkpoint() -> str:
    """Folder of the embedded checkpoint, a tiny Nemotron VL that reads text.

    It was trained on drawn strings of 1 to 8 of the characters
    ``0123456789.,:-/$``, and on these questions: "Read the text.", "Read line
    2.", "Read both." (two images), "How many characters are there?" and "What is
    the first character?".
    """
    return str(Path(__file__).with_name("nemotron_vl_tiny"))


def shipped_pictures() -> list[str]:
    """Files of images that ``tools/shipped_pictures.py`` drew."""
    folder = Path(__file__).with_name("nemotron_vl_pictures")
    return sorted(str(file) for file in folder.iterdir())


def draw_text(
    *lines: str, ink: str = "black", paper: str = "white", font_size: int = 40
) -> Image.Image:
    """Draw lines of text with Pillow's own font.

    Args:
        lines: From top to bottom, aligned left.
        ink: Colour of the text.
        paper: Colour behind it.
        font_size: Height of the font in pixels.

    Returns:
        An RGB image. Each line is 1.3 font sizes high, and the margins on the left
        and on the right are one font size wide.
    """
    font = ImageFont.load_default(font_size)
    line_height, margin = 1.3 * font_size, font_size
    width = max(font.getlength(line) for line in lines)
    size = (round(width) + 2 * margin, round(line_height * len(lines) + margin / 4))
    picture = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        y = margin / 8 + line_height * (number + 0.5)
        pen.text((margin, y), line, ink, font, anchor="lm")
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
