"""Quantise a checkpoint so that vLLM serves it with smaller weights.

    python examples/quantize.py CHECKPOINT OUT --scheme int8

int8, fp8: 8-bit weights (integers, or float8_e4m3) with a scale per output, 8-bit
activations with a scale per token; written with compressed-tensors.
gptq: 4-bit weights in groups, symmetric; written with auto-round.
awq: the same with zero points; written with auto-round.

The tower and the connector keep their precision; --all quantises their linear layers
too (int8 and fp8 only). Norms, embeddings and the output layer always keep theirs.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file

LANGUAGE = "language_model."
LINEAR = ("_proj.weight", ".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")
CONNECTOR = ("mlp1.1.weight", "mlp1.3.weight")
KINDS = {"int8": "int", "fp8": "float"}  # the schemes of 8 bits


def quantise_8bit(tensors: dict, kind: str, everything: bool) -> tuple[dict, dict]:
    """Round the weights to 8 bits, ``int`` or ``float``; return new tensors and the
    configuration."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
    )
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=8, type=kind, strategy="channel"),
        input_activations=QuantizationArgs(
            num_bits=8, type=kind, strategy="token", dynamic=True
        ),
    )
    ignore = ["language_model.lm_head"]
    if not everything:
        ignore += ["re:vision_model\\.radio_model\\..*", "re:mlp1\\..*"]
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=f"{kind}-quantized",
        quantization_status="compressed",
        ignore=ignore,
    )
    dtype = {"int": torch.int8, "float": torch.float8_e4m3fn}[kind]
    new = {}
    for name, tensor in tensors.items():
        linear = name.endswith(LINEAR) or name in CONNECTOR
        if not linear or not (everything or name.startswith(LANGUAGE)):
            new[name] = tensor
            continue
        tensor = tensor.float()
        low, high = tensor.aminmax(dim=1, keepdim=True)
        scale, zero = calculate_qparams(low, high, scheme.weights)
        new[name] = quantize(tensor, scale, zero, scheme.weights, dtype=dtype)
        new[name.removesuffix("weight") + "weight_scale"] = scale
    return new, config.model_dump(mode="json", exclude_none=True)


def quantise_4bit(
    tensors: dict, llm_config: dict, tokenizer: Path, method: str, group: int
) -> tuple[dict, dict]:
    """Round the language model to 4 bits; return new tensors and the configuration."""
    from auto_round import AutoRound
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    model = LlamaForCausalLM(LlamaConfig(**llm_config)).float()
    language = {
        name.removeprefix(LANGUAGE): tensor
        for name, tensor in tensors.items()
        if name.startswith(LANGUAGE)
    }
    model.load_state_dict(language)
    with tempfile.TemporaryDirectory() as folder:
        rounding = AutoRound(
            model,
            PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)),
            scheme="W4A16",
            group_size=group,
            sym=method == "gptq",
            iters=0,  # rounds to nearest, without calibration texts
            disable_opt_rtn=True,
        )
        rounding.quantize_and_save(folder, format=f"auto_{method}")
        (saved,) = Path(folder).rglob("config.json")
        config = json.loads(saved.read_text())["quantization_config"]
        new = {LANGUAGE + n: t for n, t in load(saved.parent).items()}
    if method == "awq":
        config["modules_to_not_convert"] = ["vision_model", "mlp1", "lm_head"]
    rest = {n: t for n, t in tensors.items() if not n.startswith(LANGUAGE)}
    return rest | new, config


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or name on the hub")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--scheme", choices=(*KINDS, "gptq", "awq"), default="int8")
    parser.add_argument("--all", action="store_true", help="tower and connector, too")
    parser.add_argument("--group-size", type=int, default=32, help="for 4-bit schemes")
    args = parser.parse_args()
    if args.all and args.scheme not in KINDS:
        parser.error("--all needs --scheme int8 or fp8")

    source = Path(args.model)
    if not source.is_dir():
        source = Path(snapshot_download(args.model))
    args.out.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and "safetensors" not in file.name:
            shutil.copy(file, args.out)
    config = json.loads((source / "config.json").read_text())
    tensors = load(source)
    if args.scheme in KINDS:
        tensors, quantization = quantise_8bit(tensors, KINDS[args.scheme], args.all)
    else:
        tensors, quantization = quantise_4bit(
            tensors,
            config["llm_config"],
            source / "tokenizer.json",
            args.scheme,
            args.group_size,
        )
    config["quantization_config"] = quantization
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, args.out / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main()
