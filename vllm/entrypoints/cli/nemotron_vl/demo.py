# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl demo``: serve the embedded checkpoint and ask about drawings."""

import argparse
import base64
import json
import random
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ....assets.nemotron_vl import TINY, tiny_checkpoint, write_clip
from ....config.nemotron_vl_names import VIDEO_ARCHITECTURE
from ....config.nemotron_vl_video import DEFAULT_FRAMES
from ....transformers_utils.processors.nemotron_vl_tiling import RESIZE_RECIPES
from ...nemotron_vl.clip import read_clip
from ...nemotron_vl.demo_questions import (
    COUNT,
    DemoQuestion,
    ask_about,
    draw_questions,
    untrained,
)
from ...nemotron_vl.server import serving
from ...nemotron_vl.tile_drawing import draw_tiles
from ...nemotron_vl.tiler import Tiler

_CLIP = "counter"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="serve the embedded checkpoint and ask it about drawn images",
        description=f"Draws {COUNT} images of short texts at random and a video of a "
        "counter, serves a checkpoint on loopback, asks about them through the OpenAI "
        "client and compares the answers. With --text or --picture, it reads those "
        "instead. Exits with 1 if fewer are right than the embedded checkpoint is "
        "known to read.",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        help="draw this text and read it; may be given several times",
    )
    parser.add_argument(
        "--picture",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="read the text of this image; may be given several times",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what is drawn (default: 0)"
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

    # It imports vLLM, which takes seconds.
    from ....multimodal.nemotron_vl import to_rgb

    model = args.model or tiny_checkpoint()
    pictures = {file.stem: to_rgb(Image.open(file)) for file in args.picture}
    own = ask_about([text.replace("\\n", "\n") for text in args.text], pictures)
    questions = own or [*draw_questions(args.seed)]

    args.out.mkdir(parents=True, exist_ok=True)
    tiler = Tiler.from_model(model)
    parts = {}
    for question in questions:
        for name, picture in question.pictures.items():
            parts[name] = _save(args.out, name, picture, tiler)
    print(f"Pictures: {args.out}/*.png, and with their tiles *_tiles.png")
    numbers = [] if own else [str(number) for number in _count(args.seed)]
    if numbers:
        parts[_CLIP] = _film(args.out, numbers, tiler)
        print(f"Video: {args.out}/{_CLIP}.mp4, and its frames {_CLIP}_tiles.png")
    log = args.out / "server.log"
    print(f"Starting vllm serve (log: {log}) ...", flush=True)
    overrides = json.dumps({"architectures": [VIDEO_ARCHITECTURE]})
    options = ["--enforce-eager", "--max-model-len=4096", "--max-num-seqs=4"]
    options += ["--hf-overrides", overrides]
    with serving(model, *options, log=log) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        rights = []
        for question in questions:
            names, truth = [*question.pictures], question.truth
            answer = _ask(client, model, names, question.text, truth, parts)
            if truth is not None:
                rights.append(answer == truth)
            if own and not args.model:
                _explain(question, answer)
        frames = [
            _ask(client, model, [_CLIP], f"Read line {line}.", number, parts) == number
            for line, number in enumerate(numbers, 1)
        ]
    if own:
        return 0
    print(f"{sum(frames)} of {len(frames)} frames of the video are read.")
    print(f"{sum(rights)} of {len(rights)} answers about images are right.")
    if sum(rights) >= TINY.least_right:
        return 0
    print(f"At least {TINY.least_right} were expected.")
    return 1


def _count(seed: int) -> list[int]:
    """What the counter of the video shows."""
    first = random.Random(f"counter {seed}").randint(10, 97)
    return [first, first + 1, first + 2]


class _Part(NamedTuple):
    """What is asked about: its part of a message, and its number of tiles."""

    content: dict
    tiles: int


def _save(folder: Path, name: str, picture: Image.Image, tiler: Tiler) -> _Part:
    """Save an image and a drawing of its tiles."""
    file = folder / f"{name}.png"
    picture.save(file)
    grid = tiler.grid_for(*picture.size, RESIZE_RECIPES[0])
    sheet = draw_tiles(picture, grid, tiler.image_size)
    sheet.save(folder / f"{name}_tiles.png")
    return _Part(_content("image_url", file, "image/png"), grid.num_tiles)


def _film(folder: Path, numbers: list[str], tiler: Tiler) -> _Part:
    """Write a video that counts, and a drawing of its frames."""
    file = folder / f"{_CLIP}.mp4"
    write_clip(file, *numbers)
    clip = read_clip(file, DEFAULT_FRAMES, tiler.image_size)
    clip.draw(tiler.image_size).save(folder / f"{_CLIP}_tiles.png")
    return _Part(_content("video_url", file, "video/mp4"), len(clip.frames))


def _content(kind: str, file: Path, media_type: str) -> dict:
    data = base64.b64encode(file.read_bytes()).decode()
    return {"type": kind, kind: {"url": f"data:{media_type};base64,{data}"}}


def _ask(
    client,
    model: str,
    names: list[str],
    text: str,
    truth: str | None,
    parts: dict[str, _Part],
) -> str:
    """Ask about images or the video, and print the answer beside the truth."""
    content = [parts[name].content for name in names]
    content.append({"type": "text", "text": text})
    start = time.perf_counter()
    answered = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        temperature=0,
    )
    milliseconds = 1000 * (time.perf_counter() - start)
    answer = answered.choices[0].message.content.strip()
    mark = "?" if truth is None else "✓" if answer == truth else "✗"
    told = "" if truth is None else f", truth {truth!r}"
    tiles = sum(parts[name].tiles for name in names)
    print(
        f"{mark} {' + '.join(names)} ({tiles} tiles, {milliseconds:.0f} ms): "
        f"{text} {answer!r}{told}",
        flush=True,
    )
    return answer


def _explain(question: DemoQuestion, answer: str) -> None:
    """Say what the embedded checkpoint was trained for, where it cannot read."""
    if question.truth is None:
        print(f"  It was trained for {TINY}, and answers so whatever an image shows.")
    elif answer != question.truth:
        cause = untrained(question.truth) or "It should read this: a real mistake."
        print(f"  {cause} It was trained for {TINY}.")
