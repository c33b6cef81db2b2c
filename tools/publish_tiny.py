#!/usr/bin/env python3
"""Embed a trained checkpoint and write its page.

    python tools/publish_tiny.py build/training

Copies the checkpoint into the package and the log beside docs/tiny_checkpoint.md,
evaluates both held-out sets in the reference and in the engine, and writes sizes,
training and tables into the page. tests/ and TINY in vllm/assets/nemotron_vl.py are
left to the reader of the tables.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tiny_reader.tables import write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/tiny_checkpoint.md"
EMBEDDED = ROOT / "vllm/assets/nemotron_vl_tiny"
EVALUATE = ROOT / "tools/evaluate_tiny.py"


def sizes(checkpoint: Path) -> str:
    """The table of what the checkpoint consists of."""
    config = json.loads((checkpoint / "config.json").read_text())
    tower, llm = config["vision_config"], config["llm_config"]
    tile, patch = config["force_image_size"], config["patch_size"]
    tokens = round((tile / patch * config["downsample_ratio"]) ** 2)
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
        "parameters": f"{stored / 2e6:.1f} million in {config['torch_dtype']}, "
        f"{stored / 1e6:.1f} MB",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def training(folder: Path) -> str:
    found = json.loads((folder / "training.json").read_text())
    dtype = found["dtype"].removeprefix("torch.")
    return (
        f"The embedded weights took {found['steps']:,} steps in {found['seconds']:,} s "
        f"on 2 cores, in {dtype}, with seed {found['seed']}; the "
        "[log](tiny_training.log) has the course. Another run gives other weights: how "
        "many steps fit depends on the machine."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folder", type=Path, help="of tools/train_tiny.py")
    parser.add_argument("--count", type=int, default=2000, help="questions of each set")
    parser.add_argument(
        "--reference-only", action="store_true", help="start no engines"
    )
    args = parser.parse_args()
    for file in (args.folder / "checkpoint").iterdir():
        shutil.copy(file, EMBEDDED / file.name)
    shutil.copy(args.folder / "training.log", PAGE.with_name("tiny_training.log"))
    write(PAGE, "sizes", sizes(EMBEDDED))
    write(PAGE, "training", training(args.folder))
    for options in (
        ("--engine", "float32", "float32:fast", "bfloat16", "float16"),
        (
            *("--elsewhere", "--wrong", PAGE.with_name("tiny_wrong.png")),
            *("--engine", "float32", "bfloat16", "float16"),
        ),
    ):
        command = [sys.executable, EVALUATE, EMBEDDED, f"--count={args.count}"]
        if args.reference_only:
            options = options[: options.index("--engine")]
        subprocess.run([*command, "--write", PAGE, *options], check=True)


if __name__ == "__main__":
    main()
