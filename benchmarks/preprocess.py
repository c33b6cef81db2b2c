"""Compares image processing: vLLM in-tree, transformers and this package.

All sides run in this process, in turns, on the same images. Measured are

- the processor call, with one thread and with all of torch's threads;
- the bytes of its tensors and the peak memory of the call;
- several calls at once, like the requests of a server;
- images that are not plain RGB;
- how much "fast" pixels differ from "exact" ones on photographs and scans;
- the path from JPEG bytes to tensors in another process: decode, hash, process,
  serialise, send through a socket as vLLM does, deserialise.

A ratio is the in-tree time over the side's, as median and range of the rounds.
"transformers" is GotOcr2ImageProcessor, which InternVL models use there.
"""

import ctypes
import io
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import skimage.data
import torch
import zmq
from engine_process import TILE, engine_process, features_of
from options import make_parser
from PIL import ExifTags, Image
from timing import print_table, summarise, take_turns
from transformers import GotOcr2ImageProcessor
from vllm.multimodal.media.image import ImageMediaIO
from vllm.transformers_utils.processors.nemotron_vl import (
    LlamaNemotronNanoVLImageProcessor,
)
from vllm.v1.serial_utils import MsgpackEncoder

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)

SIZES = [(512, 512), (640, 480), (1920, 1080), (1700, 2200), (2480, 3508), (4032, 3024)]
SCAN = (1700, 2200)
SIDES = ["in-tree", "transformers", "exact", "fast", "hf"]
BASELINE = "in-tree"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--plot", type=Path, help="file for a plot of the calls")
    args = parser.parse_args()
    rounds = 3 if args.quick else 15
    processors = make_processors()
    sizes = SIZES[:4] if args.quick else SIZES
    images = {"{}x{}".format(*size): draw(size) for size in sizes}
    cores = torch.get_num_threads()
    figures: dict[str, dict] = {}

    for threads in [1] if args.quick else dict.fromkeys((1, cores)):
        torch.set_num_threads(threads)
        found = figures[f"call, {threads} thread(s)"] = {}
        for name, image in images.items():
            calls = {side: bind(p, image) for side, p in processors.items()}
            found[name] = summarise(take_turns(calls, rounds), BASELINE)
        print_table(f"Processor call, {threads} thread(s) [ms]", found, BASELINE)
    torch.set_num_threads(1)

    found = figures["megabytes out, peak"] = {}
    for name, image in images.items():
        found[name] = {s: measure_memory(p, image) for s, p in processors.items()}
    print("\nTensors and peak memory of the call [MB]")
    for name, row in found.items():
        cells = (f"{s} {out:.1f}, {peak:.0f}" for s, (out, peak) in row.items())
        print(f"{name:>10}  " + "  ".join(cells))

    found = figures["calls at once"] = {}
    scan = images["{}x{}".format(*SCAN)]
    for side, processor in processors.items():
        found[side] = measure_at_once(bind(processor, scan), cores, rounds)
    print(f"\n{4 * cores} calls at once on {cores} cores, over {4} times a single call")
    print("  ".join(f"{side} {ratio:.2f}" for side, ratio in found.items()))

    calls = {n: bind(processors["fast"], p) for n, p in other_modes(scan).items()}
    times = take_turns(calls, rounds)
    found = {name: 1000 * statistics.median(times[name]) for name in times}
    figures["modes"] = found
    print("\nThe fast recipe on images of other modes, {}x{} pixels [ms]".format(*SCAN))
    print("  ".join(f"{name} {ms:.1f}" for name, ms in found.items()))

    figures["differences"] = found = count_differences(processors, args.quick)
    print("\nShare of values by the difference between fast and exact, of 255 levels")
    print("  ".join(f"{levels}: {share:.4%}" for levels, share in found.items()))

    figures["path"] = found = measure_paths(scan, rounds)
    print_table(
        "From JPEG bytes to tensors in the engine's process [ms]", found, BASELINE
    )
    if args.plot:
        plot(figures["call, 1 thread(s)"], args.plot)
    if args.json:
        print(json.dumps(figures))


def make_processors() -> dict[str, Callable]:
    """Image processors of all sides, with the published checkpoint's settings."""
    theirs = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
    )
    found: dict[str, Callable] = {
        "in-tree": LlamaNemotronNanoVLImageProcessor(TILE, 1, 12, True, True),
        "transformers": lambda images: theirs(images, return_tensors="pt"),
    }
    for recipe in ("exact", "fast", "hf"):
        found[recipe] = NemotronVLImageProcessor(TILE, resize=recipe, do_rescale=False)
    return found


def draw(size: tuple[int, int]) -> Image.Image:
    """A photograph, or a scan for the size of a page, resized."""
    image = skimage.data.page() if size == SCAN else skimage.data.coffee()
    return Image.fromarray(image).convert("RGB").resize(size)


def bind(processor: Callable, image: Image.Image) -> Callable[[], object]:
    return lambda: processor(images=image)


def measure_memory(processor: Callable, image: Image.Image) -> tuple[float, float]:
    """Megabytes of the tensors that a call returns, and its peak memory."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    tensors = processor(images=image)
    taken = peak_memory() - before
    out = sum(t.nbytes for t in tensors.values() if isinstance(t, torch.Tensor))
    return out / 1e6, taken / 1e6


def peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(kib)


def measure_at_once(call: Callable, cores: int, rounds: int) -> float:
    """Time of many calls at once over the time with perfectly shared cores."""
    alone, together = [], []
    with ThreadPoolExecutor(4 * cores) as pool:
        for _ in range(max(2, rounds // 3)):
            start = time.perf_counter()
            call()
            alone.append(time.perf_counter() - start)
            start = time.perf_counter()
            for done in [pool.submit(call) for _ in range(4 * cores)]:
                done.result()
            together.append(time.perf_counter() - start)
    return statistics.median(together) / (4 * statistics.median(alone))


def other_modes(image: Image.Image) -> dict[str, Image.Image]:
    """The same image in other modes, decoded as in a server."""
    found = {"RGB": image}
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        found[mode] = image.convert("L" if mode == "I;16" else mode).convert(mode)
    turned = image.copy()
    turned.getexif()[ExifTags.Base.Orientation] = 6
    return found | {"turned by EXIF": turned}


def count_differences(processors: dict[str, Callable], quick: bool) -> dict[int, float]:
    """Share of the values in which "fast" differs from "exact" by 0, 1, ... levels."""
    counts = torch.zeros(256)
    for name in ("astronaut", "chelsea", "coffee", "page", "text", "camera", "coins"):
        original = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        for size in (original.size, (1000, 700), (2480, 3508))[: 2 if quick else 3]:
            image = original.resize(size)
            tiles = [processors[recipe](images=image) for recipe in ("fast", "exact")]
            fast, exact = (t["pixel_values_flat"].int() for t in tiles)
            counts += torch.bincount((fast - exact).abs().flatten(), minlength=256)
    shares = (counts / counts.sum()).tolist()
    return {levels: share for levels, share in enumerate(shares) if share}


def measure_paths(image: Image.Image, rounds: int) -> dict[str, dict]:
    """Time the path from JPEG bytes to tensors in another process, for each side."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    with engine_process() as (socket, processors):
        calls = {
            side: lambda processor=processor, kwargs=kwargs: send(
                socket, processor, kwargs, file.getvalue()
            )
            for side, (processor, kwargs) in processors.items()
        }
        times = take_turns(calls, rounds)
    return {"{}x{}".format(*image.size): summarise(times, BASELINE)}


def send(socket: zmq.Socket, processor, kwargs: dict, jpeg: bytes) -> None:
    """Do what the API server does with an image, until the engine has it."""
    image = ImageMediaIO().load_bytes(jpeg)
    items = processor.info.parse_mm_data({"image": [image]})
    result = processor("<image>", items, hf_processor_mm_kwargs=kwargs)
    message = MsgpackEncoder().encode(features_of(result))
    socket.send_multipart(message, copy=False)
    socket.recv()


def plot(found: dict[str, dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(SIDES)
    for number, side in enumerate(SIDES):
        heights = [row[side]["ms"] for row in found.values()]
        places = [
            x + (number - (len(SIDES) - 1) / 2) * width for x in range(len(found))
        ]
        axes.bar(places, heights, width, label=side)
    axes.set_xticks(range(len(found)), found)
    axes.set_xlabel("image [pixels]")
    axes.set_ylabel("processor call, one thread [ms]")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
