# SPDX-License-Identifier: Apache-2.0
"""The images on which vLLM and the reference are compared.

Some are drawn when they are needed. Those of ``verify/shipped`` are files
with the same bytes everywhere, whatever version of Pillow draws.
"""

import base64
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..images.drawn import draw_text
from ..images.files import open_image
from .documents import draw_documents


def shipped_images() -> list[str]:
    """Files of images that ``tools/shipped_images.py`` drew."""
    return sorted(str(file) for file in Path(__file__).with_name("shipped").iterdir())


def prompt() -> str:
    """A chat with an image, up to the answer."""
    return (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nRead the text.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def compared_images(
    tile_size: int, names: list[str] | None = None
) -> dict[str, Image.Image]:
    """RGB images by name.

    Args:
        tile_size: Side of the model's tiles.
        names: Only these.

    Raises:
        ValueError: There is no image of a name.
    """
    makers: dict[str, Callable[[], Image.Image]] = {
        "one tile": lambda: _noise(tile_size, tile_size),
        "price": lambda: draw_text("$12.50", paper="wheat"),
        "invoice": lambda: draw_documents(2)[1].images[0],
        "strip": lambda: draw_text("0123456789 " * 6),
        "column": lambda: draw_text(*"0123456789012"),
        "equal tiles": lambda: Image.new("RGB", (4 * tile_size, 3 * tile_size), "tan"),
        "odd size": lambda: _noise(333, 111),
        "one pixel": lambda: Image.new("RGB", (1, 1), "teal"),
    }
    for file in shipped_images():
        makers[Path(file).name] = lambda file=file: _read(file)  # type: ignore[misc]
    if unknown := set(names or ()) - makers.keys():
        raise ValueError(
            f"There is no image {sorted(unknown)[0]!r}; there are {[*makers]}."
        )
    return {name: make() for name, make in makers.items() if name in (names or makers)}


def png_url(image: Image.Image) -> str:
    """An image as a data URL."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _noise(width: int, height: int) -> Image.Image:
    """Coloured noise that is equal in all versions of Pillow and NumPy."""
    import numpy as np

    count = width * height * 3
    values = np.arange(count, dtype=np.uint64) * np.uint64(2654435761)
    levels = (values >> np.uint64(13)).astype(np.uint8)
    return Image.fromarray(levels.reshape(height, width, 3))


def _read(file: str) -> Image.Image:
    with open_image(Path(file)) as image:
        return image.convert("RGB")
