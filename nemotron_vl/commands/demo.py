# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl demo``: serve the embedded checkpoint and ask about drawings."""

import argparse
import base64
import io
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from vllm_nemotron_vl.config.nemotron_vl_names import VIDEO_ARCHITECTURE
from vllm_nemotron_vl.config.nemotron_vl_video import DEFAULT_FRAMES
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    RESIZE_RECIPES,
)

from ..checkpoints.embedded import TINY, tiny_checkpoint
from ..checkpoints.files import check_folder
from ..checkpoints.questions import (
    COUNT,
    DemoQuestion,
    ask_about,
    draw_questions,
    trimmed,
    untrained,
)
from ..checkpoints.tiler import Tiler
from ..documents.clip import read_clip
from ..images.drawn import write_clip
from ..images.files import open_image
from ..images.tiles import draw_tiles
from ..printable import show
from ..server import serving

if TYPE_CHECKING:
    import openai

_CLIP = "counter"

# Of the video's three. One is spared for the engine's rounding, as of the images.
_LEAST_FRAMES = 2


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="serve the embedded checkpoint and ask it about drawn images",
        description=f"Draws {COUNT} images of short texts at random and a video of a "
        "counter, serves a checkpoint on loopback, asks about them through the OpenAI "
        "client and compares the answers. Exits with 1 if fewer than "
        f"{TINY.least_right} answers about images or {_LEAST_FRAMES} about the video "
        "are right. With --text or --image it reads only those, draws no video, and "
        "exits with 0 whatever the answers are. Exits with 2 if an image or the "
        "checkpoint cannot be read, or if the server fails or refuses a request.",
    )
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        type=_text,
        help=r"draw this text and read it; \n begins a new line; --text=-5 if it "
        "begins with '-'; may be given several times",
    )
    parser.add_argument(
        "--image",
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
        help="folder for what is drawn, drawings of the tiles, and the log; replaces "
        "files of an earlier run, but never FILE (default: nemotron-vl-demo)",
    )
    parser.set_defaults(run=_run)


def _text(value: str) -> str:
    """What to draw for an argument, in which ``\\n`` begins a new line."""
    text = trimmed(value.replace("\\n", "\n"))
    if not text:
        raise argparse.ArgumentTypeError("a text needs a character to draw")
    return text


def _run(args: argparse.Namespace) -> int:
    import openai

    model = args.model or tiny_checkpoint()
    check_folder(model)
    tiler = Tiler.from_model(model)
    output = _Output(args.out, args.image)
    own = ask_about(args.text, [(file, _read(file)) for file in args.image])
    args.out.mkdir(parents=True, exist_ok=True)
    images = _save(own or draw_questions(args.seed), output, tiler)
    frames = [] if own else _film(_count(args.seed), output, tiler)
    log = output.path("server.log")
    show(f"Starting vllm serve (log: {log}) ...")
    overrides = json.dumps({"architectures": [VIDEO_ARCHITECTURE]})
    options = ["--enforce-eager", "--max-model-len=4096", "--max-num-seqs=4"]
    options += ["--hf-overrides", overrides]
    with serving(model, *options, log=log) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        if own:
            _ask_own(client, model, images, explain=not args.model)
            return 0
        image_answers = _ask_all(client, model, images)
        frame_answers = _ask_all(client, model, frames)
    return _judge(image_answers, frame_answers)


class _Output(NamedTuple):
    """Where files are written, none of them in the place of a given one."""

    folder: Path
    given: Sequence[Path]

    def path(self, name: str) -> Path:
        """A file of this name, or of one with underscores before it."""
        path = self.folder / name
        while path.exists() and any(path.samefile(file) for file in self.given):
            path = path.with_name(f"_{path.name}")
        return path


class _Asked(NamedTuple):
    """A question as it is sent, and what is printed about it."""

    name: str  # of its images or the video, or the file that the user gave
    contents: list[dict]  # of a message: the images or the video
    tiles: int
    text: str
    truth: str | None


def _read(file: Path) -> Image.Image:
    """An image that the user gave, in RGB.

    Raises:
        ValueError: It cannot be read; the message names the file.
    """
    # They import vLLM, which takes seconds.
    from vllm.exceptions import VLLMValidationError

    from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb

    try:
        with open_image(file) as opened:
            return to_rgb(opened)
    except VLLMValidationError as error:  # not a ValueError, and str() adds to it
        raise ValueError(f"{file}: {error.args[0]}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ValueError(f"{file}: {cause}") from error


def _save(
    questions: Iterable[DemoQuestion], output: _Output, tiler: Tiler
) -> list[_Asked]:
    """Save what is drawn, and drawings of the tiles of all images."""
    images = []
    for question in questions:
        contents, tiles = [], 0
        for name, image in question.images.items():
            png = io.BytesIO()
            image.save(png, "PNG")
            grid = tiler.grid_for(*image.size, RESIZE_RECIPES[0])
            sheet = output.path(f"{name}_tiles.png")
            draw_tiles(image, grid, tiler.image_size).save(sheet)
            if question.file is None:
                output.path(f"{name}.png").write_bytes(png.getvalue())
            else:
                show(f"Tiles of {question.file}: {sheet}")
            contents.append(_content("image_url", png.getvalue(), "image/png"))
            tiles += grid.num_tiles
        shown = str(question.file or " + ".join(question.images))
        images.append(_Asked(shown, contents, tiles, question.text, question.truth))
    if any(asked.truth is not None for asked in images):
        show(f"Drawn images: {output.folder}/*.png, and with their tiles *_tiles.png")
    return images


def _count(seed: int) -> list[str]:
    """What the counter of the video shows."""
    first = random.Random(f"counter {seed}").randint(10, 97)
    return [str(first + number) for number in range(3)]


def _film(numbers: Sequence[str], output: _Output, tiler: Tiler) -> list[_Asked]:
    """Write a video that counts, and a drawing of its frames."""
    file = output.path(f"{_CLIP}.mp4")
    write_clip(file, *numbers)
    clip = read_clip(file, DEFAULT_FRAMES, tiler.image_size)
    sheet = output.path(f"{_CLIP}_tiles.png")
    clip.draw(tiler.image_size).save(sheet)
    show(f"Video: {file}, and its frames {sheet}")
    contents = [_content("video_url", file.read_bytes(), "video/mp4")]
    return [
        _Asked(_CLIP, contents, len(clip.frames), f"Read line {line}.", number)
        for line, number in enumerate(numbers, 1)
    ]


def _content(kind: str, data: bytes, media_type: str) -> dict:
    encoded = base64.b64encode(data).decode()
    return {"type": kind, kind: {"url": f"data:{media_type};base64,{encoded}"}}


def _ask_all(
    client: "openai.OpenAI", model: str, questions: Iterable[_Asked]
) -> list[bool]:
    """Ask, and say which answers are right."""
    return [_ask(client, model, asked) == asked.truth for asked in questions]


def _ask_own(
    client: "openai.OpenAI", model: str, questions: Iterable[_Asked], *, explain: bool
) -> None:
    """Ask about what the user gave.

    Args:
        explain: Say what the embedded checkpoint can read.
    """
    for asked in questions:
        answer = _ask(client, model, asked)
        if explain and asked.truth not in (None, answer):
            cause = untrained(asked.truth)
            show(f"  {cause or 'The checkpoint was trained for this: a mistake.'}")
    if explain:
        show(f"The embedded checkpoint reads this: {TINY}")
        show("What it answers about other images means nothing.")


def _ask(client: "openai.OpenAI", model: str, asked: _Asked) -> str:
    """Ask about images or the video, and print the answer beside the truth.

    Raises:
        RuntimeError: The server refuses to answer; the message names the image.
    """
    import openai

    content = [*asked.contents, {"type": "text", "text": asked.text}]
    message: Any = {"role": "user", "content": content}
    start = time.perf_counter()
    try:
        answered = client.chat.completions.create(
            model=model,
            messages=[message],
            max_tokens=64,
            temperature=0,
        )
    except openai.APIError as error:
        body = error.body if isinstance(error.body, dict) else {}
        cause = body.get("message") or error.message
        raise RuntimeError(f"{asked.name}: {cause}") from error
    milliseconds = 1000 * (time.perf_counter() - start)
    answer = trimmed(answered.choices[0].message.content or "")
    truth = asked.truth
    mark = "?" if truth is None else "✓" if answer == truth else "✗"
    told = "" if truth is None else f", truth {truth!r}"
    show(
        f"{mark} {asked.name} ({asked.tiles} tiles, {milliseconds:.0f} ms): "
        f"{asked.text} {answer!r}{told}",
    )
    return answer


def _judge(images: Sequence[bool], frames: Sequence[bool]) -> int:
    """Count the right answers; the exit status."""
    show(f"{sum(frames)} of {len(frames)} frames of the video are read.")
    if sum(frames) < _LEAST_FRAMES:
        show(f"At least {_LEAST_FRAMES} were expected.")
    show(f"{sum(images)} of {len(images)} answers about images are right.")
    if sum(images) < TINY.least_right:
        show(f"At least {TINY.least_right} were expected.")
    return int(sum(frames) < _LEAST_FRAMES or sum(images) < TINY.least_right)
