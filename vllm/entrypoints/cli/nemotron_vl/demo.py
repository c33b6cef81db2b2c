# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl demo``: serve the embedded checkpoint and ask about drawings."""

import argparse
import base64
import json
import time
from pathlib import Path
from typing import NamedTuple

from ....assets.nemotron_vl import draw_text, tiny_checkpoint, write_clip
from ....config.nemotron_vl_names import VIDEO_ARCHITECTURE
from ....config.nemotron_vl_video import DEFAULT_FRAMES
from ....transformers_utils.processors.nemotron_vl_tiling import RESIZE_RECIPES
from ...nemotron_vl.clip import read_clip
from ...nemotron_vl.server import serving
from ...nemotron_vl.tile_drawing import draw_tiles
from ...nemotron_vl.tiler import Tiler


class _Question(NamedTuple):
    names: list[str]  # of pictures, or of the clip
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
    _Question(["counter"], "Read line 1.", "17"),
    _Question(["counter"], "Read line 2.", "18"),
    _Question(["counter"], "Read line 3.", "19"),
)
# The clip: a counter that shows another number in each frame.
_CLIP, _NUMBERS = "counter", ("17", "18", "19")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="serve the embedded checkpoint and ask it about drawn images",
        description="Draws a price tag, a licence plate, a receipt and a video of a "
        "counter, serves a checkpoint on loopback, asks about them through the "
        "OpenAI client and checks the answers. Exits with 1 if one is wrong.",
    )
    parser.add_argument(
        "--model", help="folder or name on the hub (default: the embedded checkpoint)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nemotron-vl-demo"),
        help="folder for the images and the video, their tiles, and the log "
        "(default: nemotron-vl-demo)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from openai import OpenAI

    model = args.model or tiny_checkpoint()

    args.out.mkdir(parents=True, exist_ok=True)
    tiler = Tiler.from_model(model)
    media = _Media.draw(args.out, tiler)
    print(f"Pictures: {args.out}/*.png, and with their tiles *_tiles.png")
    print(f"Video: {args.out}/{_CLIP}.mp4, and its frames {_CLIP}_tiles.png")
    log = args.out / "server.log"
    print(f"Starting vllm serve (log: {log}) ...", flush=True)
    overrides = json.dumps({"architectures": [VIDEO_ARCHITECTURE]})
    options = ["--enforce-eager", "--max-model-len=4096", "--max-num-seqs=4"]
    options += ["--hf-overrides", overrides]
    right = 0
    with serving(model, *options, log=log) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        for question in _QUESTIONS:
            start = time.perf_counter()
            answer = _ask(client, model, question, media.urls)
            milliseconds = 1000 * (time.perf_counter() - start)
            tiles = sum(media.tiles[name] for name in question.names)
            is_right = answer == question.truth
            right += is_right
            print(
                f"{'✓' if is_right else '✗'} {' + '.join(question.names)}"
                f" ({tiles} tiles, {milliseconds:.0f} ms): {question.text}"
                f" {answer!r}, truth {question.truth!r}",
                flush=True,
            )
    print(f"{right} of {len(_QUESTIONS)} answers are right.")
    return 0 if right == len(_QUESTIONS) else 1


class _Media(NamedTuple):
    """What is asked about: the content part of each, and its number of tiles."""

    urls: dict[str, dict]
    tiles: dict[str, int]

    @classmethod
    def draw(cls, folder: Path, tiler: Tiler) -> "_Media":
        """Draw images and a video into a folder, with drawings of their tiles."""
        urls, tiles = {}, {}
        pictures = {
            "price_tag": draw_text("$12.50", paper="wheat"),
            "licence_plate": draw_text("640-27", ink="white", paper="darkslategray"),
            "receipt": draw_text("3.10", "12.40", "15.50", paper="whitesmoke"),
        }
        for name, picture in pictures.items():
            file = folder / f"{name}.png"
            picture.save(file)
            grid = tiler.grid_for(*picture.size, RESIZE_RECIPES[0])
            sheet = draw_tiles(picture, grid, tiler.image_size)
            sheet.save(folder / f"{name}_tiles.png")
            urls[name] = _part("image_url", file, "image/png")
            tiles[name] = grid.num_tiles
        file = folder / f"{_CLIP}.mp4"
        write_clip(file, *_NUMBERS)
        clip = read_clip(file, DEFAULT_FRAMES, tiler.image_size)
        clip.draw(tiler.image_size).save(folder / f"{_CLIP}_tiles.png")
        urls[_CLIP] = _part("video_url", file, "video/mp4")
        tiles[_CLIP] = len(clip.frames)
        return cls(urls, tiles)


def _part(kind: str, file: Path, media_type: str) -> dict:
    data = base64.b64encode(file.read_bytes()).decode()
    return {"type": kind, kind: {"url": f"data:{media_type};base64,{data}"}}


def _ask(client, model: str, question: _Question, parts: dict[str, dict]) -> str:
    content = [parts[name] for name in question.names]
    content.append({"type": "text", "text": question.text})
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        temperature=0,
    )
    return answer.choices[0].message.content.strip()
