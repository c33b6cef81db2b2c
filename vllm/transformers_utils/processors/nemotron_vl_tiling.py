# SPDX-License-Identifier: Apache-2.0
"""How ``Llama_Nemotron_Nano_VL`` cuts an image, from its size and the settings.

The tiling rule is that of the model's training, in NVIDIA's example
(https://github.com/NVIDIA/Megatron-LM/blob/db8cd9aa3b/examples/multimodal/image_processing.py,
2025-06-13), and of vLLM's in-tree model. Nothing here imports PyTorch or vLLM, which
takes seconds.
"""

from functools import lru_cache
from typing import Any, NamedTuple

# Share of the image's area above which a grid's score does not rise any more.
_ENOUGH_AREA = 0.6

# Of a grid. It bounds the time to choose one; the model card's own limit is 12.
MAX_TILES = 256

IMAGE_SETTINGS = (
    "image_size",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "dynamic_image_size",
    "use_thumbnail",
    "resize",
)

# How images are resampled; nemotron_vl_recipes.py describes each.
RESIZE_RECIPES = ("fast", "exact", "hf")


class TileGrid(NamedTuple):
    """A grid of ``rows`` x ``columns`` tiles, with or without a thumbnail."""

    columns: int
    rows: int
    thumbnail: bool

    @property
    def num_tiles(self) -> int:
        """Number of tiles for the tower, with the thumbnail."""
        return self.columns * self.rows + self.thumbnail


@lru_cache(maxsize=4096)
def choose_grid(
    width: int,
    height: int,
    *,
    image_size: int,
    min_tiles: int,
    max_tiles: int,
    use_thumbnail: bool,
    resize: str = RESIZE_RECIPES[0],
) -> TileGrid:
    """Choose the grid for an image of ``width`` x ``height`` pixels.

    Of all grids with ``min_tiles`` to ``max_tiles`` tiles it is the one that best
    keeps the image's area (up to 60 %) and its aspect ratio.
    """
    if resize == "hf":
        width, height = 2 * width, 2 * height
    area, aspect = width * height, width / height

    def score(grid: tuple[int, int]) -> float:
        columns, rows = grid
        ratio = columns / rows
        kept = min(columns * rows * image_size * image_size / area, _ENOUGH_AREA)
        return kept * min(ratio / aspect, aspect / ratio)

    columns, rows = max(_candidate_grids(min_tiles, max_tiles), key=score)
    return TileGrid(columns, rows, use_thumbnail and columns * rows > 1)


@lru_cache(maxsize=64)
def _candidate_grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """All grids of ``fewest`` to ``most`` tiles, the smallest first.

    Of two equally good grids of one size the first is taken. vLLM keeps grids in a
    set, whose order depends on the order of insertion. They are inserted in the same
    order here: by the longer side, then by columns, then by rows.
    """
    grids = {
        (columns, rows)
        for columns in range(1, fewest + 1)
        for rows in range(1, min(fewest, most // columns) + 1)
        if columns * rows >= fewest
    }
    for longest in range(fewest + 1, most + 1):
        shorter = range(1, min(longest, most // longest) + 1)
        grids.update((columns, longest) for columns in shorter if columns < longest)
        grids.update((longest, rows) for rows in shorter)
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def tiles_problem(name: str, value: object, least: int) -> str | None:
    """A message about a wrong number of tiles in a setting, or ``None``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and least <= value <= MAX_TILES:  # type: ignore[operator]
        return None
    return (
        f"{name} must be a whole number from {least} to {MAX_TILES}, but is {value!r}."
    )


def tokens_of_tile(image_size: int, patch_size: int, downsample_ratio: float) -> int:
    """Image tokens of one tile after the pixel shuffle.

    Args:
        image_size: Side of the tile in pixels.
        patch_size: Side of the tower's patches in pixels.
        downsample_ratio: Linear factor of the pixel shuffle.
    """
    return round(image_size // patch_size * downsample_ratio) ** 2


def image_settings(*sources: Any) -> dict[str, Any]:
    """Collect image processor settings from dicts; earlier dicts take precedence.

    ``preprocessor_config.json`` calls ``max_dynamic_patch`` ``max_num_tiles``.
    """
    settings: dict[str, Any] = {}
    for source in sources:
        found = {k: source[k] for k in IMAGE_SETTINGS if source.get(k) is not None}
        if (most := source.get("max_num_tiles")) is not None:
            found.setdefault("max_dynamic_patch", most)
        settings = found | settings
    return settings


def most_tiles(settings: dict[str, Any]) -> int:
    """Tiles of the largest image, with the thumbnail.

    Args:
        settings: As of `image_settings`. The defaults are those of the image processor.
    """
    most = settings.get("max_dynamic_patch", 12)
    if not settings.get("dynamic_image_size", True) or most == 1:
        return 1
    return most + settings.get("use_thumbnail", True)
