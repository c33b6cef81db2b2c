#!/usr/bin/env python3
"""Prints the tables of docs/sizing.md.

    python tools/sizing_table.py build/sizing

Writes checkpoints with the tensor sizes of nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1
but without values (sparse files, which take no disk space), runs `nemotron-vl
inspect` on them and prints the results in Markdown. The size of the vocabulary is an
assumption, see docs/provenance.md.
"""

import argparse
import json
import math
import shutil
import struct
import tempfile
from pathlib import Path

from nemotron_vl.checkpoints.inspection import inspect
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    Shape,
    checkpoint_tensors,
)
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig

Tensors = dict[str, tuple[str, Shape]]

BYTES = {"F32": 4, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "I32": 4, "F16": 2}
MODEL = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_512,
    "max_position_embeddings": 16384,
}
SCHEMES = {
    "bfloat16": "as published, bfloat16",
    "int8": "language model in INT8, or in FP8 by compressed-tensors",
    "fp8": "language model in FP8 by ModelOpt, KV cache in FP8",
    "int4": "language model in 4 bits (GPTQ or AWQ, groups of 128)",
    "nvfp4": "language model in NVFP4, KV cache in FP8",
}
MODELOPT = {"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8}}
QUANTISATION = {
    "int8": {"quant_method": "compressed-tensors"},
    "int4": {"quant_method": "gptq"},
    "fp8": MODELOPT,
    "nvfp4": MODELOPT,
}


def write_checkpoint(folder: Path, scheme: str) -> None:
    """Write a checkpoint with the published sizes: configuration and headers."""
    with tempfile.TemporaryDirectory() as small:
        make_checkpoint(small + "/small")
        folder.mkdir(parents=True)
        for file in Path(small, "small").glob("*.json"):
            shutil.copy(file, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"force_image_size": 512, "projector_hidden_size": 4096}
    config |= {"vit_hidden_size": 1280}
    config["llm_config"] |= MODEL
    config["vision_config"]["num_hidden_layers"] = 32
    config["vision_config"]["args"] |= {
        "model": "vit_huge_patch16_224",
        "cpe_max_size": 2048,
    }
    if scheme in QUANTISATION:
        config["quantization_config"] = QUANTISATION[scheme]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor["image_size"] = 512
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    plain = checkpoint_tensors(NemotronVLConfig.from_dict(config))
    tensors: Tensors = {}
    for name, shape in plain.items():
        linear = name.startswith("language_model.") and name.endswith("_proj.weight")
        if linear and scheme != "bfloat16":
            tensors |= quantised(name.removesuffix("weight"), *shape, scheme)
        else:
            tensors[name] = "BF16", shape
    write_headers(folder / "model.safetensors", tensors)


def quantised(layer: str, outputs: int, inputs: int, scheme: str) -> Tensors:
    if scheme == "int8":
        return {
            layer + "weight": ("I8", (outputs, inputs)),
            layer + "weight_scale": ("F32", (outputs, 1)),
        }
    if scheme == "int4":
        groups = inputs // 128
        return {
            layer + "qweight": ("I32", (inputs // 8, outputs)),
            layer + "qzeros": ("I32", (groups, outputs // 8)),
            layer + "scales": ("F16", (groups, outputs)),
        }
    if scheme == "fp8":
        return {
            layer + "weight": ("F8_E4M3", (outputs, inputs)),
            layer + "weight_scale": ("F32", ()),
            layer + "input_scale": ("F32", ()),
        }
    return {
        layer + "weight": ("U8", (outputs, inputs // 2)),
        layer + "weight_scale": ("F8_E4M3", (outputs, inputs // 16)),
        layer + "weight_scale_2": ("F32", (1,)),
        layer + "input_scale": ("F32", (1,)),
    }


def write_headers(file: Path, tensors: Tensors) -> None:
    """Write a safetensors file whose values are a hole in a sparse file."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(file, "wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(opened.tell() + end)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="for the checkpoints; replaced if it exists"
    )
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    for scheme in SCHEMES:
        write_checkpoint(args.folder / scheme, scheme)

    found = inspect(str(args.folder / "bfloat16"))
    print("| part | parameters | GB in bfloat16 |\n|---|---|---|")
    for part, sizes in found["parts"].items():
        print(f"| {part} | {sizes['parameters']:,} | {gigabytes(sizes['bytes'])} |")
    image = found["largest_image"]
    print("\n| | |\n|---|---|")
    print(f"| tokens per tile | {found['tokens_per_tile']} |")
    print(f"| largest image | {image['tiles']} tiles, {image['tokens']:,} tokens |")
    print(f"| its pixels, as sent to the engine | {image['bytes'] / 1e6:.1f} MB |")
    fit = found["images_in_context"]
    print(f"| such images in a context of {found['context']:,} tokens | {fit} |")
    processed = found["images_per_gib_of_processor_cache"]
    print(f"| such images in 1 GiB of the processor cache | {processed} |")
    cached = found["tile_cache_bytes_per_tile"] / 1e6
    print(f"| tile cache | {cached:.1f} MB per tile |")
    print(
        "\n| checkpoint | ranks | encoder | GB of weights per rank "
        "| KV bytes per token | KV GB for 16,384 tokens |\n|---|---|---|---|---|---|"
    )
    for scheme, title in SCHEMES.items():
        for tp in (1, 2, 4, 8):
            for shared in (False, True) if tp > 1 else (False,):
                report = inspect(
                    str(args.folder / scheme), tp=tp, encoder_data_parallel=shared
                )
                assert not report["problems"], report["problems"]
                weights = sum(part["rank_bytes"] for part in report["parts"].values())
                mode = {True: "data", False: "weights"}[shared] if tp > 1 else "one"
                print(
                    f"| {title} | {tp} | {mode} | {gigabytes(weights)} | "
                    f"{report['kv_bytes_per_token']:,} | "
                    f"{gigabytes(report['kv_bytes_of_context'])} |"
                )


if __name__ == "__main__":
    main()
