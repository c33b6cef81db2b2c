#!/usr/bin/env python3
"""Evaluate a trained checkpoint, embed it and write its page.

    python tools/publish_tiny.py build/training

Evaluates both held-out sets in the reference and in the engine, and writes sizes,
training and tables into a copy of docs/tiny_checkpoint.md in the training's folder.
Only then puts the checkpoint into the package, and the page, its image and the log
into docs/. tests/ and TINY in nemotron_vl/checkpoints/embedded.py are left to the
reader of the tables.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from nemotron_vl.checkpoints.inspection import inspect
from tiny_reader.tables import write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/tiny_checkpoint.md"
EMBEDDED = ROOT / "nemotron_vl/checkpoints/tiny"
IMAGE = ROOT / "docs/tiny_wrong.png"
LOG = ROOT / "docs/tiny_training.log"
EVALUATE = ROOT / "tools/evaluate_tiny.py"
QUANTIZE = ROOT / "examples/quantize.py"
COUNT = 2000  # questions of each set, as the page says


def sizes(checkpoint: Path) -> str:
    """The table of what the checkpoint consists of."""
    config = json.loads((checkpoint / "config.json").read_text())
    tower, llm = config["vision_config"], config["llm_config"]
    tile, patch = config["force_image_size"], config["patch_size"]
    report = inspect(str(checkpoint))
    tokens = report["tokens_per_tile"]
    parameters = sum(part["parameters"] for part in report["parts"].values())
    stored = (checkpoint / "model.safetensors").stat().st_size
    rows = {
        "tiles": f"{tile} pixels, 1 to 12 and a thumbnail; {tokens} image tokens each",
        "tower": f"C-RADIO: {tower['num_hidden_layers']} blocks, width "
        f"{tower['hidden_size']}, patches of {patch} pixels, class and register "
        f"tokens, position grid of {tower['args']['cpe_max_size']} pixels",
        "connector": f"pixel shuffle {config['ps_version']}, hidden width "
        f"{config['projector_hidden_size']}",
        "language model": f"Llama: {llm['num_hidden_layers']} layers, width "
        f"{llm['hidden_size']}, {llm['num_attention_heads']} heads, "
        f"{llm['num_key_value_heads']} for keys and values; every character is a token",
        "parameters": f"{parameters / 1e6:.1f} million in {config['torch_dtype']}, "
        f"{stored / 1e6:.1f} MB",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def training(folder: Path) -> str:
    found = json.loads((folder / "training.json").read_text())
    dtype = found["dtype"].removeprefix("torch.")
    start = "After an earlier training, the" if found.get("weights") else "The"
    return (
        f"{start} embedded weights took {found['steps']:,} steps in "
        f"{found['seconds']:,} s in {dtype}, with seed {found['seed']}; the "
        "[log](tiny_training.log) has the course. Another run gives other weights: how "
        "many steps fit depends on the machine."
    )


def evaluate(folder: Path, fonts: Path, count: int, engines: bool) -> None:
    """Write the page and its image in the training's folder."""
    checkpoint, page = folder / "checkpoint", folder / PAGE.name
    shutil.copy(PAGE, page)
    write(page, "sizes", sizes(checkpoint))
    write(page, "training", training(folder))
    dtypes = ["float32", "bfloat16", "float16"]
    if engines:
        int8 = folder / "int8"
        shutil.rmtree(int8, ignore_errors=True)
        subprocess.run([sys.executable, QUANTIZE, checkpoint, int8], check=True)
        dtypes.append(f"bfloat16:exact:{int8}")  # with AMX, not in float32
    for options, names in (
        ([], ["float32:fast", *dtypes]),
        (["--elsewhere", "--wrong", str(folder / IMAGE.name)], dtypes),
    ):
        command: list[str | Path] = [sys.executable, EVALUATE, checkpoint]
        command += ["--fonts", fonts, f"--count={count}", "--write", page, *options]
        if engines:
            command += ["--engine", *names]
        subprocess.run(command, check=True)


def publish(folder: Path) -> None:
    """Copy the checkpoint's files, the log, and what ``evaluate`` wrote.

    Also lists the digests of the files, as ``sha256sum`` does.
    """
    digests = []
    for file in sorted((folder / "untrained").iterdir()):
        copy = EMBEDDED / file.name
        shutil.copy(folder / "checkpoint" / file.name, copy)
        digests.append(f"{hashlib.sha256(copy.read_bytes()).hexdigest()}  {file.name}")
    Path(f"{EMBEDDED}.sha256").write_text("\n".join(digests) + "\n")
    shutil.copy(folder / "training.log", LOG)
    shutil.copy(folder / IMAGE.name, IMAGE)
    shutil.copy(folder / PAGE.name, PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of tools/train_tiny.py")
    parser.add_argument("--fonts", type=Path, default=ROOT / "build/fonts")
    parser.add_argument(
        "--count", type=int, default=COUNT, help="with another, nothing is published"
    )
    parser.add_argument(
        "--reference-only",
        action="store_true",
        help="start no engines, and publish nothing",
    )
    args = parser.parse_args()
    folder = args.folder.absolute()
    evaluate(folder, args.fonts.absolute(), args.count, not args.reference_only)
    if args.count != COUNT or args.reference_only:
        sys.exit(
            f"{folder / PAGE.name} is not published: its text says {COUNT:,} "
            "questions, also to the engine."
        )
    publish(folder)


if __name__ == "__main__":
    main()
