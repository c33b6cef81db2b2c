"""Which method of vLLM each linear layer of a model got, and layers in FP8."""

from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    CompressedTensorsW8A8Fp8,
    CompressedTensorsW8A8Int8,
)
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from nemotron_vl.checkpoints.inspection import PARTS
from support.loading import make_config, start_ranks
from support.tiny import BLOCKS, LAYERS

# Names of methods
PLAIN = UnquantizedLinearMethod.__name__
INT8 = CompressedTensorsW8A8Int8.__name__
FP8 = CompressedTensorsW8A8Fp8.__name__


def build(folder: Path, dtype: str = "bfloat16", **options) -> torch.nn.Module:
    """Build the model without loading weights."""
    config = make_config(folder, dtype, **options)
    start_ranks(config)
    with (
        set_current_vllm_config(config),
        set_default_torch_dtype(config.model_config.dtype),
        torch.device("meta"),
    ):
        return initialize_model(config)


def methods(model: torch.nn.Module) -> dict[str, Counter]:
    """Count the quantisation methods of the linear layers of each part.

    compressed-tensors has one method for all layers, with a scheme for each.
    """
    found: dict[str, Counter] = {part: Counter() for part in PARTS}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        part = next((p for p, prefix in PARTS.items() if name.startswith(prefix)), None)
        if method is not None and (
            isinstance(module, LinearBase) or name.endswith("lm_head")
        ):
            found[part][type(getattr(module, "scheme", method)).__name__] += 1
    return found


def expect(language: str, tower=PLAIN, connector=PLAIN, head="") -> dict[str, Counter]:
    """What `methods` finds where each part has one method."""
    decoder = Counter({language: 4 * LAYERS})  # each has four linear layers
    decoder[head or "UnquantizedEmbeddingMethod"] += 1
    return {
        "vision tower": Counter({tower: 4 * BLOCKS}),
        "connector": Counter({connector: 2}),
        "language model": decoder,
    }


def write_fp8(folder: Path) -> None:
    """Turn the layers of a checkpoint's language model into FP8 as ModelOpt does.

    Each gets a scale for its weight and one for its inputs.
    """
    file = folder / "model.safetensors"
    written = load_file(file)
    for name, tensor in [*written.items()]:
        if "language_model." in name and name.endswith("_proj.weight"):
            scale = tensor.abs().max().float() / 448
            written[name] = (tensor / scale).to(torch.float8_e4m3fn)
            written[f"{name}_scale"] = scale
            written[name.replace("weight", "input_scale")] = torch.tensor(1.0)
    save_file(written, file)


def write_int8(folder: Path, tower: bool) -> dict[str, torch.Tensor]:
    """Turn the layers of a model that finds pages into INT8 as compressed-tensors does.

    Each row gets a scale. Without `tower`, only those of the language model.

    Returns:
        The new values of the weights, by name.
    """
    file = folder / "model.safetensors"
    written = load_file(file)
    values = {}
    for name, tensor in [*written.items()]:
        kinds = ("_proj.weight", ".fc1.weight", ".fc2.weight")
        in_tower = ".encoder.layers." in name
        if name.endswith(kinds) and ((tower and in_tower) or "language_model." in name):
            scale = tensor.float().abs().amax(1, keepdim=True) / 127
            written[name] = (tensor / scale).round().to(torch.int8)
            written[f"{name}_scale"] = scale
            values[name] = written[name] * scale
    save_file(written, file)
    return values
