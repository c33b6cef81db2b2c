# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's own code, compared with the reference.

This is evidence that is not ours: vLLM and the reference could both be wrong in the
same way.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from . import remote_code
from .errors import relative_error
from .processes import run_elsewhere, run_program
from .reference import Reference
from .remote_code import float32_products
from .stages import Row, worst, wrong_stages

_TILES = 8
_ENGINE = "remote code"
_KEY = "vision_config.pos_embed_align_corners"


class Comparison(NamedTuple):
    """What `compare` finds.

    Args:
        rows: Errors of the stages that ran.
        corners: The other value of `_KEY`, if the towers agree with it only.
    """

    rows: list[Row]
    corners: bool | None


def compare_remote_code(
    checkpoint: Path,
    images: Mapping[str, Image.Image],
    revision: str | None,
    device: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the checkpoint's code on tiles, then the reference, both in float32.

    Args:
        checkpoint: Folder. Its code runs, and that of the repositories that it names.
        images: RGB, by name. The first tile of each of the first eight is compared.
        revision: Revision of the code of other repositories, or ``None`` for the main
            branch.
        device: Device of the reference, PyTorch's name.
        say: Gets a line before each step.

    Returns:
        Data for JSON: ``rows`` (the largest error of each stage), ``code``
        (repository, commit and files that ran), ``wrong`` (stages), ``messages``
        (what to know about them) and ``failed`` (why something did not run).
    """
    images = dict(islice(images.items(), _TILES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = Reference.empty(checkpoint, encoder_only=True)
        tiles = [reference.to_pixels(image)[0] for image in images.values()]
        save_file({"pixels": torch.stack(tiles)}, folder / "pixels.safetensors")
        say(f"The checkpoint's own code on {len(tiles)} tiles ...")
        task = {"model": str(checkpoint), "folder": name, "revision": revision}
        # An empty one: transformers would take a changed copy for the commit's code.
        with tempfile.TemporaryDirectory() as modules:
            ran = run_program(remote_code.__name__, task, HF_MODULES_CACHE=modules)
        if "error" in ran:
            last = " / ".join(ran["error"].splitlines()[-4:]) or "no message"
            ran = {"failed": {"process": last}, "code": []}
        found = Comparison([], None)
        if len([*folder.iterdir()]) > 1:  # the code computed something
            say(f"Reference on {len(tiles)} tiles ...")
            found = run_elsewhere(compare, checkpoint, [*images], device, folder)
    return {
        "rows": [row.as_dict() for row in worst(found.rows)],
        "code": ran["code"],
        "wrong": wrong_stages(found.rows),
        "messages": [*_messages(found.corners)],
        "failed": [f"{_ENGINE}, {name}: {why}" for name, why in ran["failed"].items()],
    }


def compare(
    checkpoint: Path, names: list[str], device: str, folder: Path
) -> Comparison:
    """Compare the files that the checkpoint's code has written, see there.

    Args:
        checkpoint: Folder.
        names: Names of the images of the tiles.
        device: PyTorch's name.
        folder: Folder of the files.
    """
    reference = Reference.load(checkpoint, torch.float32, device, encoder_only=True)
    rows: list[Row] = []
    corners = None
    with float32_products():
        if (folder / "tower.safetensors").exists():
            towers = load_file(folder / "tower.safetensors")["features"]
            pixels = load_file(folder / "pixels.safetensors")["pixels"]
            tiles = [*zip(names, pixels.split(1), towers.split(1), strict=True)]
            rows += (_tower(reference, *tile) for tile in tiles)
            if wrong := [t for t, row in zip(tiles, rows, strict=True) if not row.ok]:
                other = (
                    reference.tower.align_corners
                ) = not reference.tower.align_corners
                if all(_tower(reference, *tile).ok for tile in wrong):
                    corners = other
        if (folder / "connector.safetensors").exists():
            found = load_file(folder / "connector.safetensors", device)
            rows += _connector(reference, names, found)
    return Comparison(rows, corners)


def _tower(
    reference: Reference, name: str, pixels: torch.Tensor, found: torch.Tensor
) -> Row:
    features = reference.tower(reference.condition(pixels.to(reference.device)))
    return Row("float32", _ENGINE, "tower", name, relative_error(found, features))


def _connector(
    reference: Reference, names: list[str], found: dict[str, torch.Tensor]
) -> Iterator[Row]:
    """From the features of the code's own tower, rounded as the code rounds them.

    So a wrong tower does not show as a wrong connector.
    """
    rounded = found["tower"].to(found["shuffled"].dtype).float()
    features, dtype = reference.connect(rounded), found["features"].dtype
    for name, one, other in zip(names, found["features"], features, strict=True):
        error = relative_error(one, other)
        yield Row(str(dtype).removeprefix("torch."), _ENGINE, "connector", name, error)


def _messages(corners: bool | None) -> Iterator[str]:
    if corners is None:
        return
    value, other = str(corners).lower(), str(not corners).lower()
    yield (
        "The tower of the code that ran agrees with the reference if "
        f"{_KEY} is {value}, and not if it is {other}."
    )
    if not corners:
        yield (
            "NVIDIA changed its tower's code from true to false 25 days after the "
            "release of Llama-3.1-Nemotron-Nano-VL-8B-V1, and that checkpoint loads "
            "today's code. The code of its own time has true, so keep true for it: "
            "--code-revision COMMIT runs an earlier commit. A checkpoint that was "
            "trained with today's code needs false."
        )
