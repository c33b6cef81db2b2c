"""What an attacker sends during the soak.

Files of many parts, of which most are refused; the costliest ones that are read; images
under the names of other clients' images; and names without an image.
"""

from collections.abc import Iterator, Sequence

import httpx
from PIL import Image
from soak_requests import Job

from many_parts import KINDS
from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from support.bad_files import MANY_PARTS
from support.chat import data_url, image_part, png_part
from support.content_hash import ContentHash

MOST_PIXELS = 50_000_000  # the limit that docs/security.md recommends
# The costliest files that are read, and their parts: benchmarks/hostile.py
COSTLY = (
    *("jpeg_scans", "jpeg_refinements", "webp_chunks", "png_chunks"),
    "tiff_short_strips",
)
PARTS = 20
OTHER = Image.linear_gradient("L").resize((200, 60))


def attacks(jobs: Sequence[Job]) -> list[dict]:
    """Requests of an attacker.

    Args:
        jobs: What other clients ask; their first images are under attack.
    """
    return [_request(*parts) for parts in [*_files(), *_names(jobs)]]


def _files() -> Iterator[list[dict]]:
    for kind, (parts, pixels, _) in MANY_PARTS.items():
        yield [image_part(data_url(KINDS[kind](parts, pixels)))] * 2
    for kind in COSTLY:
        yield [image_part(data_url(KINDS[kind](PARTS, MOST_PIXELS)))] * 2


def _names(jobs: Sequence[Job]) -> Iterator[list[dict]]:
    content_hash = ContentHash(tiny_checkpoint())
    for job in jobs:
        image = job.request["messages"][0]["content"][0]
        name = content_hash(image)
        yield [{**png_part(OTHER), "uuid": name}]
        yield [{"type": "image_url", "image_url": None, "uuid": name}]


def _request(*parts: dict) -> dict:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*parts]}],
        "max_tokens": 1,
        "cache_salt": "the attacker's",  # without one, names are refused
    }


def attack(connection: httpx.Client, request: dict) -> str:
    """Send a request; the server must answer or refuse it."""
    try:
        status = connection.post("/v1/chat/completions", json=request).status_code
    except httpx.HTTPError as error:
        return f"lost: attack: {error!r}"
    return "attack" if status in (200, 400) else f"attack: {status}"
