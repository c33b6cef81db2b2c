# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl demo``: serve the embedded checkpoint and ask about pictures."""

import argparse
import base64
import io
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ....assets.nemotron_vl import draw_text, tiny_checkpoint
from ....transformers_utils.processors.nemotron_vl_tiling import RESIZE_RECIPES
from ...nemotron_vl.server import serving
from ...nemotron_vl.tile_drawing import draw_tiles
from ...nemotron_vl.tiler import Tiler


class _Question(NamedTuple):
    pictures: list[str]
    text: str
    truth: str


_QUESTIONS = (
    _Question(["price_tag"], "Read the text.", "$12.50"),
    _Question(["licence_plate"], "Read the text.", "640-27"),
    _Question(["licence_plate"], "How many characters are there?", "6"),
    _Question(["licence_plate"], "What is the first character?", "6"),
    _Question(["receipt"], "Read line 2.", "12.40"),
    _Question(["receipt"], "Read line 3.", "15.50"),
    _Question(["price_tag", "licence_plate"], "Read both.", "$12.50\n640-27"),
)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="serve the embedded checkpoint and ask it about drawn images",
        description="Draws a price tag, a licence plate and a receipt, serves a "
        "checkpoint on loopback, asks about them through the OpenAI client and "
        "checks the answers. Exits with 1 if one is wrong.",
    )
    parser.add_argument(
        "--model", help="folder or name on the hub (default: the embedded checkpoint)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nemotron-vl-demo"),
        help="folder for the images, with and without their tiles, and the log "
        "(default: nemotron-vl-demo)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from openai import OpenAI

    model = args.model or tiny_checkpoint()

    args.out.mkdir(parents=True, exist_ok=True)
    tiler = Tiler.from_model(model)
    pictures = _draw()
    grids = {
        name: tiler.grid_for(*picture.size, RESIZE_RECIPES[0])
        for name, picture in pictures.items()
    }
    for name, picture in pictures.items():
        picture.save(args.out / f"{name}.png")
        sheet = draw_tiles(picture, grids[name], tiler.image_size)
        sheet.save(args.out / f"{name}_tiles.png")
    print(f"Pictures: {args.out}/*.png, and with their tiles *_tiles.png")
    log = args.out / "server.log"
    print(f"Starting vllm serve (log: {log}) ...", flush=True)
    options = ("--enforce-eager", "--max-model-len=4096", "--max-num-seqs=4")
    right = 0
    with serving(model, *options, log=log) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        for question in _QUESTIONS:
            start = time.perf_counter()
            answer = _ask(client, model, question, pictures)
            milliseconds = 1000 * (time.perf_counter() - start)
            tiles = sum(grids[name].num_tiles for name in question.pictures)
            is_right = answer == question.truth
            right += is_right
            print(
                f"{'✓' if is_right else '✗'} {' + '.join(question.pictures)}"
                f" ({tiles} tiles, {milliseconds:.0f} ms): {question.text}"
                f" {answer!r}, truth {question.truth!r}",
                flush=True,
            )
    print(f"{right} of {len(_QUESTIONS)} answers are right.")
    return 0 if right == len(_QUESTIONS) else 1


def _draw() -> dict[str, Image.Image]:
    return {
        "price_tag": draw_text("$12.50", paper="wheat"),
        "licence_plate": draw_text("640-27", ink="white", paper="darkslategray"),
        "receipt": draw_text("3.10", "12.40", "15.50", paper="whitesmoke"),
    }


def _ask(
    client, model: str, question: _Question, pictures: dict[str, Image.Image]
) -> str:
    content: list[dict] = []
    for name in question.pictures:
        file = io.BytesIO()
        pictures[name].save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        url = f"data:image/png;base64,{data}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    content.append({"type": "text", "text": question.text})
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        temperature=0,
    )
    return answer.choices[0].message.content.strip()
