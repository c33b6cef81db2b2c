"""Damaged or hostile weight files are refused with a message; their code is not run."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from nemotron_vl.checkpoints.inspection import inspect
from support.hostile import MARKER, Code


def test_the_pickled_code_works(tmp_path):
    pickle.loads(pickle.dumps(Code(tmp_path / MARKER)))
    assert (tmp_path / MARKER).exists()


def pickled(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Code(folder / MARKER)))

    return spoil


def contents(header: Any, data: bytes = b"", length: int | None = None):
    """Replace the weights by a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def spoil(folder: Path) -> None:
        size = struct.pack("<Q", len(text) if length is None else length)
        (folder / "model.safetensors").write_bytes(size + text + data)

    return spoil


def tensor(shape: list[int], start: int, end: int, kind: str = "F32") -> dict:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def cut(share: float) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return spoil


def replaced(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def sparse(folder: Path) -> None:
    """A tensor of 8 GiB in a sparse file, which takes no disk space."""
    size = 1 << 33
    contents({"mlp1.0.bias": tensor([size // 4], 0, size)})(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(file.seek(0, 2) + size)


def with_tensor(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors["mlp1.0.bias"].clone()
        save_file(tensors, folder / "model.safetensors")

    return spoil


def index(content: Any) -> Callable[[Path], object]:
    """Write an index of shards, and one tensor to a file outside the folder."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        bias = {"mlp1.0.bias": tensors.pop("mlp1.0.bias")}
        save_file(tensors, folder / "model.safetensors")
        save_file(bias, folder.parent / "outside.safetensors")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17000000000\n"
DAMAGED = "safetensors file .* is damaged"

FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code in a .bin": (pickled("pytorch_model.bin"), "holds more than tensors"),
    "code in a .pt": (pickled("model.pt"), "holds more than tensors"),
    "header of 2^62 bytes": (contents({}, length=1 << 62), DAMAGED),
    "header beyond the end": (contents({}, length=1000), DAMAGED),
    "header no JSON": (contents(b"{]"), DAMAGED),
    "header a list": (contents([1]), DAMAGED),
    "header nested": (contents(b'{"a":' * 50_000), DAMAGED),
    "tensor beyond the end": (contents({"a": tensor([4], 0, 16)}), DAMAGED),
    "tensor of 2^64 values": (
        contents({"a": tensor([1 << 32, 1 << 32], 0, 16)}, bytes(16)),
        DAMAGED,
    ),
    "overlapping tensors": (
        contents({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)),
        DAMAGED,
    ),
    "negative shape": (contents({"a": tensor([-4], 0, 16)}, bytes(16)), DAMAGED),
    "unknown type": (contents({"a": tensor([4], 0, 4, "X1")}, bytes(4)), DAMAGED),
    "cut off": (cut(0.5), DAMAGED),
    "empty": (replaced(b""), DAMAGED),
    "pointer of Git LFS": (replaced(LFS), DAMAGED),
    "gigabytes of a tensor": (sparse, "'mlp1.0.bias' .* config.json implies"),
    "path as a name": (with_tensor("../../x"), "'../../x' .* not part of the model"),
    "index that points outside": (
        index(
            {
                "weight_map": {
                    "mlp1.0.weight": "model.safetensors",
                    "mlp1.0.bias": "../outside.safetensors",
                }
            }
        ),
        "outside.safetensors",
    ),
    "index no JSON": (index("{]"), "double quotes"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_weight_files_are_refused(load_model, folder, name):
    spoil, cause = FILES[name]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=cause):
        load_model(folder)
    assert not (folder / MARKER).exists()
    if cause == DAMAGED:
        with pytest.raises(ValueError, match="model.safetensors is damaged"):
            inspect(str(folder))


def test_a_pickle_beside_safetensors_is_not_opened(load_model, folder):
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Code(folder / MARKER)))
    load_model(folder)
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.blocks.0.ls1.gamma", "adaptors.clip.fc.weight"]
)
def test_parts_that_the_tower_lacks_are_refused(load_model, folder, name):
    name = f"vision_model.radio_model.{name}"
    with_tensor(name)(folder)
    with pytest.raises(ValueError, match=f"{name}' .* not part of the model"):
        load_model(folder)
    assert inspect(str(folder))["problems"] == [f"1 tensors are not known: {name}."]
