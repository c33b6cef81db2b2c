# SPDX-License-Identifier: Apache-2.0
"""Which frames of a video the model sees, and what they cost, without an engine."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import TileGrid

from ..checkpoints.tiler import MARKERS, Tiler
from ..images.kinds import HEAD, is_video
from ..images.tiles import draw_tiles
from ..regular_files import open_regular

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


class Clip(NamedTuple):
    """The taken frames of a video file.

    Args:
        frames: Each squashed to a tile, RGB.
        indices: Their places in the file.
        total: Frames of the file.
        size: Width and height of a frame of the file.
    """

    frames: list[Image.Image]
    indices: list[int]
    total: int
    size: tuple[int, int]

    def describe(self, tiler: Tiler) -> dict[str, Any]:
        """Frames, tiles and tokens."""
        width, height = self.size
        return {
            "width": width,
            "height": height,
            "frames": self.total,
            "taken": self.indices,
            "tiles": len(self.frames),
            "prompt_tokens": len(self.frames) * tiler.tokens_per_tile + MARKERS,
        }

    def draw(self, side: int) -> Image.Image:
        """The frames row by row, numbered, each ``side`` pixels wide and high."""
        columns = math.ceil(math.sqrt(len(self.frames)))
        grid = TileGrid(columns, math.ceil(len(self.frames) / columns), False)
        sheet = Image.new("RGB", (columns * side, grid.rows * side), "white")
        for number, frame in enumerate(self.frames):
            row, column = divmod(number, columns)
            sheet.paste(frame, (column * side, row * side))
        return draw_tiles(sheet, grid, side, most=len(self.frames))


def is_clip(file: Path) -> bool:
    """Whether a file begins like a video that the server reads, and is no image."""
    with open_regular(file) as opened:
        return is_video(opened.read(HEAD))


def read_clip(file: Path, num_frames: int, side: int) -> Clip:
    """Take frames as the server does.

    Args:
        file: A video.
        num_frames: Most frames to take.
        side: Side of a tile in pixels.

    Raises:
        ValueError: The video cannot be read; see `UnreadableVideo`.
    """
    # Imports NumPy and OpenCV.
    from vllm_nemotron_vl.multimodal.nemotron_vl_decoding import content_of, decode

    sizes: list[tuple[int, int]] = []

    def shrink(pixels):
        frame = Image.fromarray(pixels)
        sizes.append(frame.size)
        return frame.resize((side, side), Image.Resampling.BICUBIC)

    decoded = decode(content_of(file), num_frames, shrink)
    return Clip(decoded.frames, decoded.indices, decoded.total, sizes[0])
