"""Compares in-tree image processing with ours on a server: time to the first token
and images per second.

One server does both, by default with the embedded checkpoint: a request says which
processing it wants. Rounds of both sides take turns. Clients send a scanned page as
JPEG and stream a short answer. Every request of a round has a different image, and
nothing is cached.
"""

import asyncio
import base64
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import skimage.data
from openai import AsyncOpenAI
from options import make_parser
from PIL import Image, ImageDraw

from nemotron_vl.checkpoints.embedded import tiny_checkpoint
from nemotron_vl.server import serving

CLIENTS = (1, 4, 16)
SIDES: dict[str, dict] = {  # what is added to the requests
    "in-tree": {"mm_processor_kwargs": {"in_tree": True}},
    "ours": {},
}
SIZE = (1700, 2200)
PLUGIN = "[vllm.general_plugins]\nnemotron_vl_in_tree = in_tree:register\n"
OPTIONS = (
    "--enforce-eager",
    "--max-model-len=4096",
    "--max-num-seqs=16",
    "--mm-processor-cache-gb=0",
    "--no-enable-prefix-caching",
    "--trust-request-mm-kwargs",
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=tiny_checkpoint())
    args = parser.parse_args()
    rounds, requests = (1, 8) if args.quick else (7, 32)
    pages = draw_pages(max(requests, *CLIENTS))
    with tempfile.TemporaryDirectory() as folder:
        add_plugin(Path(folder))
        with serving(args.model, *OPTIONS, log=Path(folder) / "log") as url:
            asyncio.run(ask_all(url, args.model, pages[:2], 1, SIDES["in-tree"]))
            found = {
                clients: [
                    {
                        side: asyncio.run(
                            ask_all(url, args.model, pages[:n], clients, extra)
                        )
                        for side, extra in SIDES.items()
                    }
                    for n in [max(requests, clients)] * rounds
                ]
                for clients in CLIENTS
            }

    figures: dict = {}
    print("clients  side     first token ms    images/s  ratio (range)")
    for clients, turns in found.items():
        row = figures[clients] = {}
        for side in SIDES:
            first, rates = zip(*(turn[side] for turn in turns), strict=True)
            ratios = [turn[side][1] / turn["in-tree"][1] for turn in turns]
            row[side] = {
                "first_token_ms": 1000 * statistics.median(first),
                "images_per_s": statistics.median(rates),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
            print(
                f"{clients:>7}  {side:<8} {row[side]['first_token_ms']:>14.0f}"
                f" {row[side]['images_per_s']:>11.1f}"
                f"  {row[side]['ratio']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
    if args.json:
        print(json.dumps(figures))


def draw_pages(count: int, first: int = 0) -> list[str]:
    """Scanned pages, each with another number on it, as data URLs."""
    page = Image.fromarray(skimage.data.page()).convert("RGB").resize(SIZE)
    urls = []
    for number in range(first, first + count):
        ImageDraw.Draw(page).text((9, 9), f"{number:>9}", "red", font_size=40)
        file = io.BytesIO()
        page.save(file, "JPEG", quality=90)
        data = base64.b64encode(file.getvalue()).decode()
        urls.append(f"data:image/jpeg;base64,{data}")
    return urls


def add_plugin(folder: Path) -> None:
    """Make all processes of the server load `in_tree` as a plugin."""
    info = folder / "nemotron_vl_in_tree-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: nemotron-vl-in-tree\nVersion: 0\n")
    (info / "entry_points.txt").write_text(PLUGIN)
    paths = (str(folder), str(Path(__file__).resolve().parent))
    found = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join((*paths, *([found] if found else [])))


async def ask_all(
    url: str, model: str, pages: list[str], clients: int, extra: dict
) -> tuple[float, float]:
    """Median seconds to the first token, and images per second."""
    waiting = iter(pages)
    first: list[float] = []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:

        async def work() -> None:
            for page in waiting:
                first.append(await ask(client, model, page, extra))

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        seconds = time.perf_counter() - start
    return statistics.median(first), len(pages) / seconds


async def ask(client: AsyncOpenAI, model: str, page: str, extra: dict) -> float:
    start = time.perf_counter()
    content = [
        {"type": "image_url", "image_url": {"url": page}},
        {"type": "text", "text": "Read the text."},
    ]
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=4,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True, **extra},
    )
    first = 0.0
    async for chunk in stream:
        if chunk.choices and not first:
            first = time.perf_counter() - start
    return first


if __name__ == "__main__":
    main()
