"""What hostile image files cost an API server.

The files are those of `tools/many_parts`: many parts, each of which is legal.
Each is read and cut into tiles in a process of its own, as a server does. "x good" is
its CPU time over that of a scanned page that is a JPEG of as many bytes. A file is
within its budget if it takes less than 3 s or less than 20 times such a page; a refused
one is measured, too. "kept" is the memory that stays after the image has left.

Without --quick a server with an engine that costs nothing gets the costliest files,
eight in a request, and shortly after it a page of another client. "wait" is that page's
time, and what it is behind eight good pages of as many bytes.
"""

import asyncio
import base64
import io
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import free_engine
import httpx
import numpy as np
import skimage.data
import torch
from front_end import CACHES, OPTIONS, TILE, request, started
from fuzz_structure import MOST_BYTES, measure
from options import make_parser
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.image import ImageMediaIO

from many_parts import KINDS
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import png
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    threads as image_threads,
)

PARTS = (20, 4000, 60_000, 1_000_000)
PIXELS = (1_000_000, 50_000_000)  # the second is the limit that security.md recommends
MOST_SECONDS, MOST_TIMES_GOOD = 3, 20
IMAGES = 8  # of a request


@dataclass
class Row:
    """The costliest file of a kind."""

    bytes: int
    made_of: tuple[int, int]  # parts, pixels
    seconds: float  # CPU time
    times_good: float
    peak_mb: float
    kept_mb: float
    answer: str

    @property
    def within_budget(self) -> bool:
        return self.seconds < MOST_SECONDS or self.times_good < MOST_TIMES_GOOD


def main() -> None:
    args = make_parser(__doc__).parse_args()
    image_threads.IMAGE_THREADS.set_limit(1)
    torch.set_num_threads(1)  # so that a fork can go on
    read(scan_of(50_000))  # warms up
    parts, pixels = (PARTS[:2], PIXELS[:1]) if args.quick else (PARTS, PIXELS)
    good = Good(4 if args.quick else 20)
    rows = {kind: costliest(kind, parts, pixels, good) for kind in KINDS}
    print("kind                       bytes   pixels  CPU s  x good  peak MB  kept MB")
    for kind, row in sorted(rows.items(), key=lambda item: -item[1].seconds):
        print(
            f"{kind:22} {row.bytes:9} {row.made_of[1]:8} {row.seconds:6.2f}"
            f" {row.times_good:7.1f} {row.peak_mb:8.0f} {row.kept_mb:8.0f}"
            f"  {row.answer[:60]}"
        )
    figures: dict[str, object] = {
        "files": {kind: asdict(row) for kind, row in rows.items()},
        "most_seconds": max(row.seconds for row in rows.values()),
        "most_times_good": max(row.times_good for row in rows.values()),
        "most_seconds_a_megabyte": max(
            1e6 * row.seconds / row.bytes for row in rows.values()
        ),
        "most_kept_mb": max(row.kept_mb for row in rows.values()),
        "over_budget": [k for k, row in rows.items() if not row.within_budget],
    }
    print(f"over the budget: {figures['over_budget'] or 'none'}")
    if not args.quick:
        costly = sorted(rows, key=lambda kind: -rows[kind].seconds)[:4]
        figures["waits"] = waits({k: KINDS[k](*rows[k].made_of) for k in costly})
    if args.json:
        print(json.dumps(figures))


def read(data: bytes) -> str:
    """Load a file and cut it into tiles; refused ones are not images."""
    try:
        image = CheckedImageIO(ImageMediaIO(), (), load=png.load).load_bytes(data).media
    except VLLMValidationError as error:
        return f"refused: {error}"
    size = "{}x{}".format(*image.size)
    processor = NemotronVLImageProcessor(TILE)
    tiles = processor.tile(image, processor.grid_for(*image.size))
    return f"{size}, {len(tiles)} tiles"


def read_and_leave(data: bytes) -> str:
    """`read`, and the bytes that stay."""
    before = _resident()
    answer = read(data)
    return f"{_resident() - before} {answer}"


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Good:
    """CPU time of a page by its bytes: a scan as JPEG, in several sizes."""

    def __init__(self, most_megapixels: int) -> None:
        self.files = [
            scan(width)
            for width in (300, 800, 1700, 2500, 5000)
            if width * width * 1.3 <= most_megapixels * 1e6
        ]
        self.sizes = [len(data) for data in self.files]
        self.seconds = [
            statistics.median(measure(read, data).seconds for _ in range(3))
            for data in self.files
        ]

    def __call__(self, size: int) -> float:
        if size > self.sizes[-1]:
            return self.seconds[-1] * size / self.sizes[-1]
        return float(np.interp(size, self.sizes, self.seconds))


def costliest(kind: str, parts: tuple, pixels: tuple, good: Good) -> Row:
    rows = []
    for made_of in itertools.product(parts, pixels):
        data = KINDS[kind](*made_of)
        if len(data) > MOST_BYTES:
            continue
        cost = measure(read_and_leave, data)
        kept, _, answer = cost.answer.partition(" ")
        rows.append(
            Row(
                bytes=len(data),
                made_of=made_of,
                seconds=cost.seconds,
                times_good=cost.seconds / good(len(data)),
                peak_mb=cost.peak / 1e6,
                kept_mb=int(kept) / 1e6 if kept.lstrip("-").isdigit() else 0,
                answer=answer,
            )
        )
    return max(rows, key=lambda row: row.seconds)


def waits(files: dict[str, bytes]) -> dict[str, dict]:
    """Seconds of a page that is sent after a request with many images."""
    found = {}
    benchmarks = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = benchmarks
    os.environ["VLLM_MAX_IMAGE_PIXELS"] = str(PIXELS[-1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "model", tile_size=TILE, cpe_max_size=TILE)
        options = [
            *(option for option in OPTIONS if "trust" not in option),
            *CACHES["none"],
            *free_engine.OPTIONS,
            f'--limit-mm-per-prompt={{"image": {IMAGES}}}',
            # Eight images fit the context; they are read whole.
            '--mm-processor-kwargs={"max_dynamic_patch": 3}',
        ]
        with started(folder, "serve", options) as (url, _):
            url += "/v1/chat/completions"
            page = scan_of(200_000)
            asyncio.run(seconds_behind(url, page, page))  # warms up
            for kind, data in files.items():
                alike = scan_of(len(data))
                row = {}
                for side, file in (("good", alike), ("hostile", data)):
                    row[side] = statistics.median(
                        asyncio.run(seconds_behind(url, file, page)) for _ in range(3)
                    )
                row["times"] = row["hostile"] / row["good"]
                found[kind] = row
                print(
                    f"{kind:22} wait {row['hostile']:.2f} s, behind good pages "
                    f"{row['good']:.2f} s: {row['times']:.1f} times"
                )
    return found


def scan_of(size: int) -> bytes:
    """A scanned page that is a JPEG of about so many bytes."""
    width, data = 200, b""
    while len(data) < size and width < 6000:
        data, width = scan(width), width * 5 // 4
    return data


def scan(width: int) -> bytes:
    """A scanned page of so many pixels a line, as a JPEG."""
    page = Image.fromarray(skimage.data.page()).convert("RGB")
    file = io.BytesIO()
    page.resize((width, width * 4 // 3)).save(file, "JPEG", quality=90)
    return file.getvalue()


async def seconds_behind(url: str, first: bytes, page: bytes) -> float:
    def body(data: bytes, images: int) -> dict:
        address = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        asked = request(address)
        (message,) = asked["messages"]
        message["content"] = message["content"][:1] * images + message["content"][1:]
        return asked

    many, one = body(first, IMAGES), body(page, 1)
    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:
        before = asyncio.create_task(client.post(url, json=many))
        await asyncio.sleep(0.3)  # its body is there
        start = time.perf_counter()
        answer = await client.post(url, json=one)
        seconds = time.perf_counter() - start
        answer.raise_for_status()
        await before
    return seconds


if __name__ == "__main__":
    main()
