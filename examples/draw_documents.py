"""Draw a folder of 40 documents of 12 kinds, whose texts the embedded checkpoint reads.

    python examples/draw_documents.py FOLDER

`FOLDER/texts.csv` has the text of each page.
"""

import argparse
import csv
import random
from pathlib import Path

import pillow_heif

from nemotron_vl.images.drawn import draw_text

SUFFIXES = ("pdf", "tif", "png", "jpg", "webp", "gif", "bmp", "jp2", "avif", "heic")
SUFFIXES += ("ppm", "pgm")
DOCUMENTS = 40


def draw(folder: Path, seed: int = 0) -> list[tuple[str, int, str]]:
    """Write the documents, and return file, page and text of each page."""
    pillow_heif.register_heif_opener()
    chance, pages = random.Random(seed), []
    for number in range(DOCUMENTS):
        suffix = SUFFIXES[number % len(SUFFIXES)]
        file = folder / ("invoices", "letters")[number % 2] / f"{number:02d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        count = 3 if suffix in ("pdf", "tif") else 1
        texts = [f"${chance.randrange(1000, 10000) / 100:.2f}" for _ in range(count)]
        first, *others = map(draw_text, texts)
        options = {"save_all": True, "append_images": others} if others else {}
        if suffix == "pgm":
            first = first.convert("L")
        first.save(file, **options)
        name = str(file.relative_to(folder))
        pages += [(name, page, text) for page, text in enumerate(texts, 1)]
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    pages = draw(folder)
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "page", "text"), *pages])
    print(
        f"{folder}: {DOCUMENTS} documents of {len(SUFFIXES)} kinds, {len(pages)} pages"
    )


if __name__ == "__main__":
    main()
