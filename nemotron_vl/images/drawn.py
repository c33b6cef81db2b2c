# SPDX-License-Identifier: Apache-2.0
"""Images and videos of drawn text."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


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
    image = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        y = top + line_height * (number + 0.5)
        pen.text((left, y), line, ink, font, anchor="lm")
    return image


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
