"""CPU time of an image, from a request's bytes to tensors in the engine, by stage.

In-tree's loader and processing and ours run in turns in this process, on a page of
1700x2200 as JPEG and as PNG in a data URL: without vLLM's cache of processed images,
and sent again while the cache has it. A second process is the engine. The stages:

- base64: the text of the data URL becomes bytes (vLLM, pybase64);
- decode: bytes become an image, or are recognised;
- read: the image is checked and, where it is not RGB, converted;
- hash: the key of vLLM's cache;
- process: tiles and, for ours, their digests;
- prompt: what else vLLM's processor does;
- serialise, send: vLLM's messages, through a socket;
- receive: in the other process, until it has tensors.

A server has one of the two. So a round makes `CALLS` calls of each in a row, after one
that does not count, which finds the memory and the caches of the other.

Times are CPU milliseconds of all threads of a process, the median of the rounds. The
ratio is that of in-tree's sum over ours, as median and range of the rounds.
"""

import base64
import contextlib
import io
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import zmq
from engine_process import engine_process, features_of
from options import make_parser
from PIL import Image
from preprocess import SCAN, draw
from timing import order
from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.transformers_utils.processors.nemotron_vl import (
    LlamaNemotronNanoVLImageProcessor,
)
from vllm.v1.serial_utils import MsgpackEncoder

from vllm_nemotron_vl.multimodal.nemotron_vl_loading import CheckedImageIO
from vllm_nemotron_vl.multimodal.nemotron_vl_repeats import Seen
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import png

STAGES = (
    *("base64", "decode", "read", "hash", "process", "prompt"),
    *("serialise", "send", "receive"),
)
CALLS = 3
FORMATS = {"JPEG": {"quality": 90}, "PNG": {}}


def main() -> None:
    args = make_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    page = draw(SCAN)
    figures = {}
    with sides() as (calls, again):
        for name, options in FORMATS.items():
            text = encode(page, name, options)
            for title, chosen in ((name, calls), (f"{name} again", again)):
                took = measure(chosen, text, 5 if args.quick else 25)
                figures[title] = found = summarise(took)
                print_found("{} of {}x{}".format(title, *SCAN), found)
    if args.json:
        print(json.dumps(figures))


def encode(page: Image.Image, name: str, options: dict) -> str:
    file = io.BytesIO()
    page.save(file, name, **options)
    return base64.b64encode(file.getvalue()).decode()


Stages = dict[str, float]


class Clock:
    """CPU seconds of this process by stage."""

    def __init__(self) -> None:
        self.stages: Stages = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str, outer: str | None = None) -> Iterator[None]:
        """Count for a stage, and not for that around it."""
        start = time.process_time()
        try:
            yield
        finally:
            took = time.process_time() - start
            self.stages[name] += took
            if outer:
                self.stages[outer] -= took

    def wrap(self, function: Callable, name: str, outer: str) -> Callable:
        def timed(*args, **kwargs):
            with self.stage(name, outer):
                return function(*args, **kwargs)

        return timed


Call = Callable[[str], Stages]


class Side(NamedTuple):
    """How one of the two reads and processes images."""

    loader: ImageMediaIO
    processor: BaseMultiModalProcessor
    kwargs: dict
    cache: LruKeyReplicatedSenderCache | None = None


@contextlib.contextmanager
def sides() -> Iterator[tuple[dict[str, Call], dict[str, Call]]]:
    """What to call with a data URL's text, for each side: without and with a cache."""
    with engine_process() as (socket, processors):
        calls, again = {}, {}
        for name, (processor, kwargs) in processors.items():
            first = knowing = ImageMediaIO()
            if name != "in-tree":
                first = CheckedImageIO(first, (), load=png.load)
                knowing = CheckedImageIO(knowing, (), Seen(len(FORMATS)), png.load)
            cache = LruKeyReplicatedSenderCache(processor.info.ctx.model_config)
            once = Side(first, processor, kwargs)
            calls[name] = partial(send, socket, once)
            known = Side(knowing, processor, kwargs, cache)
            again[name] = partial(send, socket, known)
        yield calls, again


def send(socket: zmq.Socket, side: Side, text: str) -> Stages:
    """Do what the API server does with an image, until the engine has it."""
    clock = Clock()
    load = side.loader.load_bytes
    with (
        clock.stage("base64"),
        mock.patch.object(
            side.loader, "load_bytes", clock.wrap(load, "decode", "base64")
        ),
    ):
        image = side.loader.load_base64("image/*", text)
    with clock.stage("read"):
        items = side.processor.info.parse_mm_data({"image": [image]})
    hash_kwargs = clock.wrap(MultiModalHasher.hash_kwargs, "hash", "prompt")
    with contextlib.ExitStack() as patches:
        patches.enter_context(
            mock.patch.object(MultiModalHasher, "hash_kwargs", hash_kwargs)
        )
        for kind in (LlamaNemotronNanoVLImageProcessor, NemotronVLImageProcessor):
            timed = clock.wrap(kind.__call__, "process", "prompt")
            patches.enter_context(mock.patch.object(kind, "__call__", timed))
        with clock.stage("prompt"):
            result = side.processor(
                "<image>",
                items,
                hf_processor_mm_kwargs=side.kwargs,
                cache=side.cache,
            )
    features = features_of(result)
    with clock.stage("serialise"):
        frames = MsgpackEncoder().encode(features)
    with clock.stage("send"):
        socket.send_multipart(frames, copy=False)
        clock.stages["receive"] = float(socket.recv())
    return {stage: clock.stages[stage] for stage in STAGES}


def measure(
    calls: dict[str, Callable[[str], Stages]], text: str, rounds: int
) -> dict[str, list[Stages]]:
    took: dict[str, list[Stages]] = {side: [] for side in calls}
    for number in range(rounds):
        for side in order(calls, number):
            _, *row = [calls[side](text) for _ in range(1 + CALLS)]
            took[side].append(
                {stage: statistics.mean(r[stage] for r in row) for stage in STAGES}
            )
    return took


def summarise(took: dict[str, list[Stages]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    sums = {side: [sum(r.values()) for r in rounds] for side, rounds in took.items()}
    for side, rounds in took.items():
        ratios = [a / b for a, b in zip(sums["in-tree"], sums[side], strict=True)]
        found[side] = {
            stage: 1000 * statistics.median(r[stage] for r in rounds)
            for stage in STAGES
        } | {
            "sum": 1000 * statistics.median(sums[side]),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return found


def print_found(title: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}: CPU time [ms]")
    print(" " * 8 + "".join(f"{stage:>10}" for stage in (*STAGES, "sum")))
    for side, row in found.items():
        cells = "".join(f"{row[stage]:10.1f}" for stage in (*STAGES, "sum"))
        spread = f"({row['ratio_min']:.1f}-{row['ratio_max']:.1f})"
        ratio = f"  {row['ratio']:.1f}x {spread}" if side != "in-tree" else ""
        print(f"{side:>8}{cells}{ratio}")


if __name__ == "__main__":
    main()
