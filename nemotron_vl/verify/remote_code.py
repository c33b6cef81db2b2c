# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's own code computes tiles, in a process of its own.

The process imports nothing of vLLM and not this package's classes, so that what runs is
the checkpoint's. It is started only with a user's consent.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import dynamic_module_utils

from ..checkpoints.files import read_json, write_json

# Checkpoints and versions of the code have them or not; none is a weight.
_BUFFERS = ("summary_idxs", "norm_mean", "norm_std")
# `extract_feature` runs no language model, but its class builds one.
_SMALL = {"num_hidden_layers": 1, "vocab_size": 16, "intermediate_size": 16}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

Classes = dict[str, str]


@contextmanager
def float32_products() -> Iterator[None]:
    """No product of float32 values is rounded to TensorFloat-32, also in attention."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        yield


def _main(task: dict[str, Any]) -> None:
    """Compute the tower and the connector of ``pixels.safetensors`` in a folder.

    ``pixels`` are uint8 ``(T, 3, size, size)``. For each of the two that runs, a file
    is written beside:

    - ``tower.safetensors``: ``features`` ``(T, patches, width)`` in float32
    - ``connector.safetensors``: ``tower``, as before; ``shuffled`` ``(T, tokens,
      4 x width)``, which enters the MLP, in the dtype that the code chooses, and
      ``features`` ``(T, tokens, width of the language model)``, of an MLP in float32

    The results are ``failed``, why one did not run, by name, and ``code``, what ran.
    """
    checkpoint, folder = Path(task["model"]), Path(task["folder"])
    config = read_json(str(checkpoint), "config.json")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels = load_file(folder / "pixels.safetensors")["pixels"].to(device)
    tiles = (pixels.float() / 255).split(1)  # one at a time bounds the memory
    failed: dict[str, str] = {}
    copied = _recorded(task["revision"])
    computed: dict[str, Callable] = {"tower": _tower, "connector": _connector}
    for name, compute in computed.items():
        try:
            found = compute(checkpoint, config, tiles)
            found = {n: torch.cat(parts).cpu() for n, parts in found.items()}
            save_file(found, folder / f"{name}.safetensors")
        except Exception as error:  # code of others may raise any
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    write_json(Path(task["out"]), {"failed": failed, "code": _code(copied)})


Tiles = tuple[torch.Tensor, ...]
Found = dict[str, list[torch.Tensor]]


def _tower(checkpoint: Path, config: dict[str, Any], tiles: Tiles) -> Found:
    vision = config["vision_config"]
    model = _build(vision["auto_map"], _in_float32(vision), checkpoint)
    _load(model, checkpoint, ("vision_model.",), "vision_model.")
    model.to(tiles[0].device)
    with float32_products():
        return {"features": [_features(model(tile)) for tile in tiles]}


def _connector(checkpoint: Path, config: dict[str, Any], tiles: Tiles) -> Found:
    """By the end-to-end ``extract_feature``, whose tower runs again."""
    text = {n: v for n, v in config["llm_config"].items() if n not in _TOKENS}
    # vLLM chooses this attention, too. The file may name one that is not installed.
    eager = {"attn_implementation": "eager"}
    config = {**config, **eager, "llm_config": {**text, **_SMALL, **eager}}
    config["vision_config"] = _in_float32(config["vision_config"])
    model = _build(config["auto_map"], config, checkpoint)
    _load(model, checkpoint, ("vision_model.", "mlp1."))
    model.to(tiles[0].device)
    found: Found = {"tower": [], "shuffled": [], "features": []}

    def enter(_: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        # The published code rounds the tower's features to bfloat16. The MLP stays in
        # float32: in bfloat16, another GELU would be within the bound.
        found["shuffled"].append(arguments[0])
        return (arguments[0].float(),)

    model.mlp1.register_forward_pre_hook(enter)
    model.vision_model.register_forward_hook(
        lambda _, __, output: found["tower"].append(_features(output))
    )
    with float32_products():
        found["features"] = [model.extract_feature(tile) for tile in tiles]
    return found


def _in_float32(vision: dict[str, Any]) -> dict[str, Any]:
    """Of the tower. Bfloat16 does not tell the conventions of its grid apart."""
    args = {**vision.get("args", {}), "dtype": "float32"}
    return {**vision, "args": args, "torch_dtype": "float32"}


def _build(classes: Classes, config: dict[str, Any], checkpoint: Path) -> Any:
    config_class, model_class = (
        dynamic_module_utils.get_class_from_dynamic_module(classes[name], checkpoint)
        for name in ("AutoConfig", "AutoModel")
    )
    return model_class(config_class(**config)).float().eval()


def _load(
    model: nn.Module, checkpoint: Path, parts: tuple[str, ...], prefix: str = ""
) -> None:
    """Load the tensors of some parts of a checkpoint.

    Args:
        model: Model of the checkpoint's code.
        checkpoint: Folder.
        parts: Beginnings of names in the checkpoint.
        prefix: What names in the checkpoint have more than those of the model.

    Raises:
        ValueError: Names the tensors that are missing or unknown.
    """
    tensors = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if name.startswith(parts):
                    tensors[name.removeprefix(prefix)] = opened.get_tensor(name)
    missing, unknown = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if (prefix + name).startswith(parts)]
    for names, problem in (
        (missing, "The checkpoint lacks tensors of its own code"),
        (unknown, "The checkpoint's own code does not know its tensors"),
    ):
        if wrong := [n for n in names if not n.endswith(_BUFFERS)]:
            raise ValueError(f"{problem}: {', '.join(sorted(wrong)[:5])}.")


def _features(output: Any) -> torch.Tensor:
    """Of a tower that returns an object or a tuple (summary, features)."""
    return output.features if hasattr(output, "features") else output[1]


def _recorded(revision: str | None) -> dict[Path, tuple[str, str]]:
    """From now on, load the code of other repositories at a revision, and note it.

    The published configuration and model load code of a second repository themselves,
    at its main branch. All of it passes this function of transformers.

    Returns:
        Where code is copied to, and the repository and the commit that it comes from.
    """
    found: dict[Path, tuple[str, str]] = {}
    load = dynamic_module_utils.get_cached_module_file

    def recorded(repository: str | Path, file: str, *arguments, **options) -> str:
        own = Path(repository)
        if revision and not own.is_dir():
            options["revision"] = revision
        path = load(repository, file, *arguments, **options)
        folder = Path(path.removesuffix(file))
        name, commit = str(repository), folder.name
        if own.is_dir():
            commit = ""
            if own.parent.name == "snapshots":  # of the hub's cache
                name = own.parts[-3].removeprefix("models--").replace("--", "/")
                commit = own.name
        found[Path(dynamic_module_utils.HF_MODULES_CACHE, folder)] = name, commit
        return path

    # By its dictionary, since mypy allows no assignment of another signature.
    vars(dynamic_module_utils)["get_cached_module_file"] = recorded
    return found


def _code(copied: dict[Path, tuple[str, str]]) -> list[dict[str, Any]]:
    """The repositories with the files that were imported."""
    files: dict[tuple[str, str], set[str]] = {}
    for name, module in [*sys.modules.items()]:
        file = Path(getattr(module, "__file__", None) or ".")
        if not name.startswith("transformers_modules.") or file.name == "__init__.py":
            continue
        for folder, source in copied.items():
            if file.is_relative_to(folder):
                files.setdefault(source, set()).add(str(file.relative_to(folder)))
    return [
        {"repository": name, "commit": commit, "files": sorted(found)}
        for (name, commit), found in sorted(files.items())
    ]


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
