"""What the tower sees of a drawing, tile by tile, and the labels of each patch."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from drawn_text import Character, Drawing
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    choose_grid,
)

from .drawing import Artist, Layout, arrange
from .strings import CHARACTERS

IGNORED = -100
CELLS = 2  # labelled cells of a patch, from left to right
MOST_BEFORE = 16  # characters before one that are told apart

# Least width of a character and height of a digit, in pixels of a tile.
LEAST = (5.0, 8.0)


@dataclass
class Views:
    """The tiles of a drawing, and the thumbnail if there are several.

    n tiles, p patches each. Labels are ``IGNORED`` where they are not known.
    """

    pixels: torch.Tensor  # (n, 3, side, side) uint8
    # Character whose centre is in the cell: 0 for none, i + 1 for CHARACTERS[i].
    cells: torch.Tensor  # (n, p, CELLS)
    # Of the first legible character of a patch: how many of its line stand before it in
    # the tile, and how many lines are above it.
    before: torch.Tensor  # (n, p)
    line: torch.Tensor  # (n, p)

    def only(self, chosen: torch.Tensor) -> "Views":
        """Those of some tiles; ``chosen`` is boolean, of shape (n,)."""
        return Views(**{name: part[chosen] for name, part in vars(self).items()})

    @classmethod
    def joined(cls, several: list["Views"]) -> "Views":
        """Views of several images as those of one."""
        parts = zip(*(vars(views).values() for views in several), strict=True)
        return cls(*map(torch.cat, parts))


@dataclass
class Camera:
    """Cuts images into tiles as the checkpoint does."""

    side: int = 128  # of a tile, in pixels
    patch: int = 16

    def grid(self, width: float, height: float, max_tiles: int) -> tuple[int, int]:
        """Columns and rows."""
        columns, rows, _ = choose_grid(
            round(width),
            round(height),
            image_size=self.side,
            min_tiles=1,
            max_tiles=max_tiles,
            use_thumbnail=True,
            resize="exact",
        )
        return columns, rows

    def views(self, drawing: Drawing, grid: tuple[int, int]) -> Views:
        columns, rows = grid
        width, height = drawing.image.size
        boxes = [(0, 0, columns, rows)] if columns * rows > 1 else []
        tiles = [(x, y, x + 1, y + 1) for y in range(rows) for x in range(columns)]
        side = self.side
        whole = drawing.image.resize(
            (columns * side, rows * side), Image.Resampling.BICUBIC
        )
        pixels = [
            np.asarray(whole.crop(tuple(side * edge for edge in tile)))
            for tile in tiles
        ]
        if boxes:
            size = (side, side)
            small = drawing.image.resize(size, Image.Resampling.BICUBIC)
            pixels.append(np.asarray(small))
        labels = []
        for left, top, right, bottom in [*tiles, *boxes]:
            across, down = columns / width, rows / height
            labels.append(
                self._label(
                    [
                        (
                            c,
                            (c.x * across - left) / (right - left),
                            (c.y * down - top) / (bottom - top),
                            2 * c.half_width * across / (right - left) * side,
                            2 * c.half_height * down / (bottom - top) * side,
                        )
                        for c in drawing.characters
                    ]
                )
            )
        cells, before, line = (np.stack(part) for part in zip(*labels, strict=True))
        return Views(
            torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(cells),
            torch.from_numpy(before),
            torch.from_numpy(line),
        )

    def _label(
        self, placed: list[tuple[Character, float, float, float, float]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels of a tile.

        Args:
            placed: Characters with the place of their centres (0 to 1 if it is in the
                tile), and width and height in pixels.
        """
        across = self.side // self.patch
        cells = np.zeros((across, across, CELLS), np.int64)
        before = np.full((across, across), IGNORED)
        line = np.full((across, across), IGNORED)
        inside = [p for p in placed if 0 <= p[1] < 1 and 0 <= p[2] < 1]
        inside.sort(key=lambda p: (p[0].line, p[0].index))
        lines = sorted({p[0].line for p in inside})
        counts = dict.fromkeys(lines, 0)
        for c, x, y, wide, high in inside:
            row, column = int(y * across), int(x * across * CELLS)
            patch, cell = divmod(column, CELLS)
            legible = wide >= LEAST[0] and high >= LEAST[1]
            if not legible or cells[row, patch, cell]:
                cells[row, patch, cell] = IGNORED
            else:
                cells[row, patch, cell] = CHARACTERS.index(c.text) + 1
            if legible and before[row, patch] == IGNORED:
                before[row, patch] = min(counts[c.line], MOST_BEFORE - 1)
                line[row, patch] = lines.index(c.line)
            counts[c.line] += 1
        return (
            cells.reshape(across**2, CELLS),
            before.reshape(-1),
            line.reshape(-1),
        )


@dataclass
class HeldOutTiler:
    """The tiles of 64 pixels for which held-out images are chosen.

    They do not depend on the checkpoint that is evaluated.
    """

    max_tiles: int
    tile_size: int = 64

    def choose_grid(self, width: int, height: int) -> tuple[int, int]:
        return Camera(self.tile_size).grid(width, height, self.max_tiles)


def is_legible(camera: Camera, layout: Layout, grid: tuple[int, int]) -> bool:
    """Whether the characters are large enough in the tiles or in the thumbnail."""
    columns, rows = grid
    return (
        layout.narrowest() * columns * camera.side >= LEAST[0]
        and layout.tallness() * rows * camera.side >= LEAST[1]
    )


def draw_views(
    rng: random.Random,
    artist: Artist,
    camera: Camera,
    lines: list[str],
    max_tiles: int,
    effort: float,
) -> tuple[Drawing, tuple[int, int]]:
    """Draw lines that stay legible in at most ``max_tiles`` tiles."""
    while True:
        layout = arrange(rng, artist.fonts, lines, effort)
        grid = camera.grid(layout.width, layout.height, max_tiles)
        if is_legible(camera, layout, grid):
            break
    size = (grid[0] * camera.side, grid[1] * camera.side)
    return artist.draw(rng, layout, lines, size, effort), grid
