# SPDX-License-Identifier: Apache-2.0
"""A page for a browser that shows each page beside its answer, for checking.

It needs no server. The names, answers and messages in it are not trusted: they are data
of `RECORDS`, never HTML.
"""

import hashlib
import json
from importlib.resources import files
from typing import Any

from tqdm import tqdm

from ..checkpoints.tiler import Tiler
from .corrections import Corrections
from .fields import fields_of
from .outputs import OutputFolder
from .page_images import draw_images
from .results import Record, Results

RECORDS = "records.js"
_ASSETS = files(__package__) / "checking_page"
_SHOWN_SETTINGS = ("question", "system", "model", "version")


def write_checking_page(
    folder: OutputFolder,
    results: Results,
    corrections: Corrections,
    tiler: Tiler,
    root: str | None = None,
    passwords: tuple[str, ...] = (),
) -> None:
    """Write the page, its data and the images of the documents.

    Args:
        folder: Where it is written.
        results: Records, without corrections.
        corrections: Those that the page starts with.
        tiler: How large PDFs are drawn.
        root: See `draw_images`.
        passwords: See `draw_images`.

    Raises:
        OSError: A file cannot be written.
        ValueError: A place is taken.
    """
    for asset in _ASSETS.iterdir():
        folder.write(asset.name, asset.read_bytes())
    images: dict[tuple[str, int], dict[str, Any]] = {}
    count = len({(r.file, page) for r in results.records for page in r.pages})
    drawn = draw_images(results, tiler, root, passwords)
    # A progress bar, only on a terminal.
    for name, page in tqdm(drawn, total=count, unit="page", disable=None):
        shown: dict[str, Any] = {"page": page.number}
        if page.error is None:
            shown["image"] = f"images/{len(images) + 1:04}.webp"
            folder.write(shown["image"], page.image)
        else:
            shown["error"] = page.error
        if page.text is not None:
            shown["text"] = page.text
        images[name, page.number] = shown
    records = [
        _shown(record)
        | {"images": [images[record.file, page] for page in record.pages]}
        | {"correction": corrections.get((record.file, record.page))}
        for record in results.records
    ]
    data = {
        "settings": {key: results.settings.get(key) for key in _SHOWN_SETTINGS},
        "fields": [f._asdict() for f in fields_of(results.schema, results.records)],
        "records": records,
    }
    data["id"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()
    folder.write(RECORDS, _script(data))


def _shown(record: Record) -> dict[str, Any]:
    keys = ("error", "cut", "blank", "turned", "cer", "copy_of", "found", "empty")
    found = {key: getattr(record, key) for key in keys}
    shown = {k: v for k, v in found.items() if v is not None and v is not False}
    if record.found:  # a page that was not asked has no answer
        shown.pop("empty", None)
    place = {"file": record.file, "page": record.page}
    return place | {"answer": record.answer, "digest": record.digest} | shown


def _script(data: dict[str, Any]) -> bytes:
    """A script that holds data in ASCII, without anything that could end it.

    It is parsed as JSON: in an object of JavaScript, a key ``__proto__`` is no key.
    """
    text = json.dumps(json.dumps(data)).replace("<", "\\u003c")
    return f'"use strict";\nconst EXPORT = JSON.parse({text});\n'.encode()
