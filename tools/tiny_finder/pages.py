"""Pages that the checkpoints learn from, and questions about them."""

import random
from dataclasses import dataclass
from pathlib import Path

from tiny_reader.batches import Stage
from tiny_reader.drawing import Artist, training_fonts
from tiny_reader.strings import CHARACTERS, draw_string
from tiny_reader.views import Camera, Views, draw_views

# Most tiles of a page besides the thumbnail, and how often.
TILES = {1: 0.15, 2: 0.2, 3: 0.2, 4: 0.25, 6: 0.2}
LEAST_LENGTH = 3  # characters of a question


@dataclass
class Page:
    lines: list[str]
    views: Views


class PageDrawer:
    """Draws batches of pages of one to three lines.

    Args:
        fonts: Folder that tools/fonts.sh wrote.
        tile_size: Side of a tile in pixels.
        tiles: Least tiles of a batch.
    """

    def __init__(self, fonts: Path, tile_size: int, tiles: int) -> None:
        self.tiles = tiles
        self.artist = Artist(training_fonts(fonts / "training"))
        self.camera = Camera(tile_size)

    def batch(self, seed: str, stage: Stage) -> list[Page]:
        """A batch; the seed decides everything."""
        rng = random.Random(seed)
        pages: list[Page] = []
        count = 0
        while count < self.tiles:
            lines = page_lines(rng)
            limit = 1
            if rng.random() < stage.tiles:
                (limit,) = rng.choices([*TILES], [*TILES.values()])
            drawn = draw_views(
                rng, self.artist, self.camera, lines, limit, stage.effort
            )
            page = Page(lines, self.camera.views(*drawn))
            count += len(page.views.pixels)
            pages.append(page)
        return pages


def page_lines(rng: random.Random) -> list[str]:
    """One to three lines, mostly one."""
    return [number(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def number(rng: random.Random) -> str:
    """A number such as 4711-08, a price, or what else the reader learns."""
    style = rng.random()
    if style < 0.3:
        return f"{rng.randrange(10**4):04}-{rng.randrange(100):02}"
    if style < 0.45:
        return f"${rng.randrange(10, 10**3) / 10:.2f}"
    while len(text := draw_string(rng)) < LEAST_LENGTH:
        pass
    return text


def almost(rng: random.Random, text: str) -> str:
    """A text that differs in one or two places."""
    while True:
        letters = [*text]
        place = rng.randrange(len(letters))
        change = rng.random()
        if change < 0.7:
            letters[place] = rng.choice(CHARACTERS[:10])
        elif change < 0.9:
            other = rng.randrange(len(letters))
            letters[place], letters[other] = letters[other], letters[place]
        else:
            letters.insert(place, rng.choice(CHARACTERS[:10]))
        if (found := "".join(letters)) != text:
            return found
