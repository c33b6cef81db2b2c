# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint's settings cut an image, computed without an engine."""

from typing import Any, NamedTuple

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    TileGrid,
    choose_grid,
    image_settings,
    tiles_problem,
    tokens_of_tile,
)

from .files import read_json

# The settings of nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1, which are the default.
_PUBLISHED: dict[str, Any] = {
    "force_image_size": 512,
    "downsample_ratio": 0.5,
    "vision_config": {"patch_size": 16},
}
MARKERS = 2  # <img> and </img>

_FINE = 100_000  # pixels of the shorter side, more than any grid has


class Tiler(NamedTuple):
    """The tiling settings of a checkpoint and of the command line."""

    image_size: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    tokens_per_tile: int

    @classmethod
    def from_model(cls, model: str | None, max_tiles: int | None = None) -> "Tiler":
        """Read the data files of a checkpoint (folder or hub name).

        Without a checkpoint, the settings are those of the published one.

        Raises:
            OSError: A file is missing.
            ValueError: A file or a setting cannot be used.
        """
        config, preprocessor = _PUBLISHED, {}
        if model is not None:
            config = read_json(model, "config.json")
            preprocessor = read_json(model, "preprocessor_config.json")
        settings = image_settings(preprocessor, config)
        dynamic = settings.get("dynamic_image_size")
        fewest = settings.get("min_dynamic_patch", 1)
        most = max_tiles or settings.get("max_dynamic_patch", 12)
        problem = tiles_problem("min_dynamic_patch", fewest, least=1) or tiles_problem(
            "--max-tiles" if max_tiles else "max_num_tiles", most, least=fewest
        )
        if problem:
            raise ValueError(problem)
        try:
            size = config["force_image_size"]
            tokens = tokens_of_tile(
                size, config["vision_config"]["patch_size"], config["downsample_ratio"]
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"config.json of {model}: {error!r}") from error
        return cls(
            image_size=size,
            min_tiles=1 if dynamic is False else fewest,
            max_tiles=1 if dynamic is False else most,
            use_thumbnail=settings.get("use_thumbnail", True),
            tokens_per_tile=tokens,
        )

    def grid_for(self, width: int, height: int, recipe: str) -> TileGrid:
        return choose_grid(
            width,
            height,
            image_size=self.image_size,
            min_tiles=self.min_tiles,
            max_tiles=self.max_tiles,
            use_thumbnail=self.use_thumbnail,
            resize=recipe,
        )

    def filling_scale(self, width: float, height: float) -> float:
        """How many pixels to draw per unit of a page so that it fills its tiles.

        The page gets the grid that an endlessly fine image of its shape would get:
        of the best fitting ones, that with the most tiles. At this scale it covers
        the grid in both directions. A long strip covers only the long side, and no
        page takes more than twice the pixels of its grid.

        Args:
            width: Width of the page, in any unit.
            height: Its height in the same unit.
        """
        fine = _FINE / min(width, height)
        grid = self.grid_for(round(fine * width), round(fine * height), "fast")
        across = grid.columns * self.image_size / width
        down = grid.rows * self.image_size / height
        return min(max(across, down), 2 * min(across, down))

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest image, with a thumbnail."""
        return (self.max_tiles + 1) * self.tokens_per_tile + MARKERS

    def describe(self, width: int, height: int, recipe: str) -> dict[str, Any]:
        """Grid, tiles and tokens of an image of ``width`` x ``height`` pixels."""
        grid = self.grid_for(width, height, recipe)
        return {
            "columns": grid.columns,
            "rows": grid.rows,
            "resized": [grid.columns * self.image_size, grid.rows * self.image_size],
            "thumbnail": grid.thumbnail,
            "tiles": grid.num_tiles,
            "prompt_tokens": grid.num_tiles * self.tokens_per_tile + MARKERS,
        }
