"""Serve a checkpoint on loopback and ask it about real pictures.

Sends photographs and a rendered page through the OpenAI client: as data URL, as
local file, two in one message, streaming and not. Exits with 0 if every answer
came and every picture took the tokens that its tiles imply.
"""

import argparse
import base64
import sys
import tempfile
import time
from pathlib import Path

import skimage.data
from openai import OpenAI
from PIL import Image, ImageDraw, ImageFont

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.make_checkpoint import (
    tiny_checkpoint,
)
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.server import serving
from vllm_nemotron_vl.transformers_utils.config import NemotronVLConfig
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
    image_seq_length,
)

BUILD = Path("build")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="checkpoint (default: a tiny random one)")
    args = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        media = Path(folder).resolve()
        model = args.model
        if model is None:
            model = tiny_checkpoint()
            print("The weights are random, so the replies are too.")
        pictures = write_pictures(media)
        log = BUILD / "demo-server.log"
        print(f"Starting vllm serve (log: {log}) ...", flush=True)
        with serving(
            model,
            "--max-model-len=4096",
            "--enforce-eager",
            "--max-num-seqs=4",
            f"--allowed-local-media-path={media}",
            log=log,
        ) as url:
            failures = ask_all(url, model, pictures)
    print("All answers came." if not failures else f"{failures} request(s) failed.")
    return 1 if failures else 0


def write_pictures(folder: Path) -> dict[str, Path]:
    pictures = {
        "coffee": Image.fromarray(skimage.data.coffee()),
        "astronaut": Image.fromarray(skimage.data.astronaut()),
        "scanned page": Image.fromarray(skimage.data.page()),
        "invoice": draw_invoice(),
    }
    files = {}
    for name, picture in pictures.items():
        files[name] = folder / f"{name.replace(' ', '_')}.png"
        picture.save(files[name])
    return files


def draw_invoice() -> Image.Image:
    """A page of 1240 x 1754 pixels, which is A4 at 150 dpi."""
    page = Image.new("RGB", (1240, 1754), "white")
    draw = ImageDraw.Draw(page)
    draw.text((120, 120), "INVOICE 2026-0417", "black", ImageFont.load_default(56))
    rows = [("Paper, 500 sheets", "12.40"), ("Toner", "89.00"), ("Staples", "3.10")]
    for number, (item, price) in enumerate([*rows, ("Total", "104.50")]):
        y = 320 + 90 * number
        draw.text((120, y), item, "black", ImageFont.load_default(36))
        draw.text((960, y), price, "black", ImageFont.load_default(36))
        draw.line((120, y + 66, 1120, y + 66), "grey")
    return page


def ask_all(url: str, model: str, pictures: dict[str, Path]) -> int:
    client = OpenAI(base_url=url + "/v1", api_key="none")
    config = NemotronVLConfig.from_pretrained(model)
    tiler = NemotronVLImageProcessor.from_pretrained(model)

    def text_tokens() -> int:
        chat = [{"role": "user", "content": "What do you see?"}]
        answer = client.chat.completions.create(
            model=model, messages=chat, max_tokens=1
        )
        return answer.usage.prompt_tokens

    without_pictures = text_tokens()
    failures = 0
    for names, as_file, stream in (
        (["coffee"], False, True),
        (["invoice"], True, True),
        (["scanned page"], True, False),
        (["coffee", "astronaut"], False, True),
        (["invoice", "scanned page"], True, False),
    ):
        files = [pictures[name] for name in names]
        parts = [image_part(file, as_file) for file in files]
        parts.append({"type": "text", "text": "What do you see?"})
        reply, first, tokens = ask(client, model, parts, stream)
        tiles = [tiler.grid_for(*Image.open(file).size).num_tiles for file in files]
        # Each picture is its features, <img>, </img> and a line break.
        expected = sum(n * image_seq_length(config) + 3 for n in tiles)
        right = tokens == without_pictures + expected and reply
        failures += not right
        print(
            f"{'ok  ' if right else 'FAIL'} {' + '.join(names)}"
            f" ({'file' if as_file else 'data URL'},"
            f" {'streamed' if stream else 'whole'}):"
            f" {' + '.join(map(str, tiles))} tiles, {tokens} prompt tokens,"
            f" {first * 1000:.0f} ms to the first {'token' if stream else 'answer'}:"
            f" {reply[:40]!r}",
            flush=True,
        )
    return failures


def image_part(file: Path, as_file: bool) -> dict:
    url = file.as_uri()
    if not as_file:
        data = base64.b64encode(file.read_bytes()).decode()
        url = f"data:image/png;base64,{data}"
    return {"type": "image_url", "image_url": {"url": url}}


def ask(
    client: OpenAI, model: str, parts: list[dict], stream: bool
) -> tuple[str, float, int]:
    """Reply, seconds to its first token (or to all of it) and prompt tokens."""
    options = dict(
        model=model,
        messages=[{"role": "user", "content": parts}],
        max_tokens=16,
        temperature=0,
    )
    start = time.perf_counter()
    if not stream:
        answer = client.chat.completions.create(**options)
        seconds = time.perf_counter() - start
        return answer.choices[0].message.content, seconds, answer.usage.prompt_tokens
    reply, first, tokens = "", 0.0, 0
    for chunk in client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - start
            reply += chunk.choices[0].delta.content
        if chunk.usage:
            tokens = chunk.usage.prompt_tokens
    return reply, first, tokens


if __name__ == "__main__":
    sys.exit(main())
