"""Measures how reuse of equal tiles changes the tiles encoded and the first token.

There are three kinds of images, each in its order:

- a session: what an agent that uses a browser sees (`record_session.py`), once with a
  frame for each key and once with the frames after actions only;
- the pages of a PDF document;
- photographs, where nothing repeats and the search for equal tiles only costs time.

A quick run needs no browser: it draws a window in which somebody types.

Three sides answer for the same images in one engine, in turns. "in-tree" has vLLM's
in-tree processing and encodes every tile. "repeats" encodes equal tiles of one image
once. "cache" also keeps the embeddings of earlier images. vLLM's own cache of whole
images is avoided. The tower is a ViT-H of few blocks with random weights. A ratio is
in-tree's figure over the side's.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from options import make_parser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# Lets LLM.apply_model send the functions below to the worker.
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"

import in_tree
import pypdfium2
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont
from record_session import record
from vllm import LLM, SamplingParams
from vllm.plugins import load_general_plugins

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from vllm_nemotron_vl.model_executor.models.nemotron_vl_reuse import TileReuse
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_digest import (
    tile_digest,
)

SESSION = Path(__file__).parents[1] / "build/session"
TILE = 512
SIDES = ("in-tree", "repeats", "cache")
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins")
FIRST_TOKEN = SamplingParams(temperature=0, max_tokens=1)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int, default=1, help="blocks of the ViT-H")
    parser.add_argument("--plot", type=Path, help="file for a plot of the tiles")
    args = parser.parse_args()
    if args.quick:
        inputs = {"frames": draw_frames(), "photographs": read_photos()}
    else:
        if not (SESSION / "reference.pdf").exists():
            record(SESSION)
        inputs = read_inputs()
    figures: dict[str, dict] = {}
    tiles = {name: count_tiles(images) for name, images in inputs.items()}
    print("Tiles encoded: received, repeats, cache (ratio)")
    for name, counts in tiles.items():
        found = figures[name] = dict(zip(SIDES, counts[-1], strict=True))
        found["images"] = len(counts)
        print(
            f"{name:>16}  {len(counts)} images: {found['in-tree']}, "
            f"{found['repeats']} ({found['in-tree'] / found['repeats']:.2f}x), "
            f"{found['cache']} ({found['in-tree'] / found['cache']:.2f}x)",
            flush=True,
        )
    if args.plot:
        plot(tiles, args.plot)

    if args.quick:
        inputs = {name: images[1:3] for name, images in inputs.items()}
    else:
        del inputs["actions"]  # they are among the frames
    with tempfile.TemporaryDirectory() as folder:
        llm = start(Path(folder) / "checkpoint", args.blocks)
        measure_first_tokens(llm, inputs, figures)
        figures["looking"] = measure_looking(llm, inputs["photographs"][0])
    if args.json:
        print(json.dumps(figures))


def read_inputs() -> dict[str, list[Image.Image]]:
    frames = {file.stem: Image.open(file) for file in sorted(SESSION.glob("*.png"))}
    document = pypdfium2.PdfDocument(SESSION / "reference.pdf")
    pages = [document[n].render(scale=150 / 72).to_pil() for n in range(20)]
    return {
        "frames": [*frames.values()],
        "actions": [p for name, p in frames.items() if name.endswith("action")],
        "PDF pages": pages,
        "photographs": read_photos(),
    }


def read_photos() -> list[Image.Image]:
    return [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOS]


def draw_frames() -> list[Image.Image]:
    """A window in which somebody types; stands for the session in a quick run."""
    font = ImageFont.load_default(size=24)
    frames = []
    for letters in range(1, 9):
        frame = Image.new("RGB", (1280, 800), "white")
        draw = ImageDraw.Draw(frame)
        for line in range(12):
            draw.text((80, 150 + 50 * line), f"Paragraph {line}", "black", font)
        draw.rectangle((80, 60, 700, 110), outline="grey")
        draw.text((90, 70), "searched"[:letters], "black", font)
        frames.append(frame)
    return frames


def count_tiles(images: list[Image.Image]) -> list[tuple[int, int, int]]:
    """Tiles that each side has encoded after each image, counted by digest."""
    cutter = NemotronVLImageProcessor(TILE, do_rescale=False)
    received = repeats = 0
    seen: set[bytes] = set()
    counts = []
    for image in images:
        digests = [bytes(d) for d in cutter(images=image)["tile_digests"].numpy()]
        received += len(digests)
        repeats += len({*digests})
        seen.update(digests)
        counts.append((received, repeats, len(seen)))
    return counts


def start(checkpoint: Path, blocks: int) -> LLM:
    make_checkpoint(
        checkpoint,
        tower="vit_huge",
        tower_layers=blocks,
        tile_size=TILE,
        cpe_max_size=2048,
    )
    load_general_plugins()
    in_tree.register()
    return LLM(
        str(checkpoint),
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=1,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
        skip_mm_profiling=True,
        additional_config={"nemotron_vl": {"tile_cache_mb": 512}},
    )


def measure_first_tokens(llm: LLM, inputs: dict, figures: dict) -> None:
    print("\nMedian time to first token [ms], and in-tree's over it (range by image)")
    for name, images in inputs.items():
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for side in SIDES:
            llm.apply_model(forget)
            first_token(llm, Image.new("RGB", (600, 400)), side)  # warms up
            for image in images:
                if side == "repeats":
                    llm.apply_model(forget)
                seconds[side].append(first_token(llm, image, side))
        cells = []
        for side in SIDES:
            ratios = [
                a / b for a, b in zip(seconds["in-tree"], seconds[side], strict=True)
            ]
            figures[name][f"first token, {side}"] = found = {
                "ms": 1000 * statistics.median(seconds[side]),
                "total_ratio": sum(seconds["in-tree"]) / sum(seconds[side]),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
            cells.append(
                f"{side} {found['ms']:.0f} ({found['total_ratio']:.2f}x in all, "
                f"{min(ratios):.2f}-{max(ratios):.2f})"
            )
        print(f"{name:>16}  " + "  ".join(cells), flush=True)


def forget(model) -> None:
    model.tile_reuse.clear()


def first_token(llm: LLM, image: Image.Image, side: str) -> float:
    prompt = {
        "prompt": "<image>\nRead.",
        "multi_modal_data": {"image": image},
        # A unique ID avoids vLLM's cache of whole images.
        "multi_modal_uuids": {"image": os.urandom(8).hex()},
        "mm_processor_kwargs": {"in_tree": True} if side == "in-tree" else {},
    }
    start = time.perf_counter()
    llm.generate(prompt, FIRST_TOKEN, use_tqdm=False)
    return time.perf_counter() - start


def measure_looking(llm: LLM, image: Image.Image) -> dict[str, float]:
    """Compare digests and bookkeeping of a photograph with encoding it."""
    fields = NemotronVLImageProcessor(TILE, do_rescale=False)(images=image)
    pixels, digests = fields["pixel_values_flat"], fields["tile_digests"]
    (seconds,) = llm.apply_model(partial(time_encoding, pixels, digests))
    seconds["digests"] = timed(lambda: [tile_digest(tile) for tile in pixels])
    looking = seconds["digests"] + seconds["bookkeeping"]
    share = looking / seconds["encoding"]
    print(
        f"\nThe search takes {1000 * looking:.1f} ms for {len(pixels)} tiles, "
        f"{share:.3%} of the time to encode them with 32 blocks"
    )
    return {f"{k}_ms": 1000 * v for k, v in seconds.items()} | {"share": share}


def time_encoding(
    pixels: torch.Tensor, digests: torch.Tensor, model
) -> dict[str, float]:
    """Seconds of reuse without encoding, and of encoding with 32 blocks."""
    with torch.inference_mode():
        features = model.extract_feature(pixels)
        cache = features.new_empty(20, *features.shape[1:])
        idle = TileReuse(cache)
        bookkeeping = timed(
            lambda: (idle.clear(), idle(lambda _: features, pixels, digests))
        )
        encoding = timed(lambda: model.extract_feature(pixels))
    blocks = len(model.vision_model.model.encoder.layers)
    return {"bookkeeping": bookkeeping, "encoding": encoding * 32 / blocks}


def timed(call: Callable[[], object]) -> float:
    """Median seconds of five calls."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def plot(tiles: dict[str, list], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(tiles), figsize=(3.2 * len(tiles), 3), layout="constrained"
    )
    for place, (name, counts) in zip(axes, tiles.items(), strict=True):
        for side, values in zip(SIDES, zip(*counts, strict=True), strict=True):
            place.plot(range(1, len(values) + 1), values, label=side)
        place.set_title(name)
        place.set_xlabel("images")
    axes[0].set_ylabel("tiles encoded")
    axes[0].legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    # Run as an importable module: the worker looks the functions up by its name.
    import tile_reuse

    tile_reuse.main()
