"""Damage to the weights of a checkpoint that no check of its layout can see."""

from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def swap_layers(folder: Path, name: str = "mlp.down_proj") -> None:
    """Exchange a linear layer of two blocks of the language model.

    The embedded checkpoint still reads with the default, but nothing with
    ``self_attn.q_proj``.
    """
    tensors = load_file(folder / WEIGHTS)
    one, other = (
        f"language_model.model.layers.{layer}.{name}.weight" for layer in (0, 2)
    )
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1000] ^= 1
    (folder / WEIGHTS).write_bytes(content)
