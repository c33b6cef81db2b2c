"""Compare the weights of models before and after a reload."""

import torch

TOWER = "vision_model.radio_model."
MEAN, STD = (TOWER + f"input_conditioner.norm_{name}" for name in ("mean", "std"))


def state(model) -> dict[str, torch.Tensor]:
    """All weights. vLLM's CPU kernels empty those that they pack; then products."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    found = {name: tensor.clone() for name, tensor in found.items()}
    for name, layer in model.named_modules():
        weight = found.get(f"{name}.weight")
        if weight is not None and not weight.numel():
            sizes = ("input_size_per_partition", "input_size", "embedding_dim")
            width = next(getattr(layer, key) for key in sizes if hasattr(layer, key))
            x = torch.arange(2.0 * width).sin().view(2, width)
            found[f"{name}.weight"] = layer.quant_method.apply(layer, x)
    return found


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def in_block(name: str) -> bool:
    return ".blocks.1." in name
