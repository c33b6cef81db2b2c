# SPDX-License-Identifier: Apache-2.0
"""The data files of a checkpoint: JSON, and the headers of safetensors files.

A checkpoint is a folder or a name on the hub. No weights are read.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import Shape

from ..regular_files import (
    MOST_BYTES,
    MOST_TOKENIZER_BYTES,
    check_regular,
    check_size,
    naming,
    read_text,
)

# The hub's own rule has more details.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_STORED_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32}


class Header(NamedTuple):
    """The description of a tensor in a safetensors file."""

    shape: Shape
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _STORED_BITS.get(self.dtype, 8) // 8


def find_file(model: str, name: str) -> Path:
    """A data file of a checkpoint, in its folder or from the hub.

    Raises:
        OSError: It cannot be loaded from the hub; names the model.
    """
    file = Path(model, name)
    if not Path(model).is_dir():
        check_hub_name(model)
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(model, name))
        except OSError as error:
            raise OSError(
                f"There is no folder {model}, and {name} cannot be loaded from the "
                f"hub: {error}"
            ) from error
    return file


def check_hub_name(model: str) -> None:
    """Refuse what is no folder, and is no name on the hub: ``owner/name``.

    Raises:
        OSError: Says that there is no such folder.
    """
    if Path(model).is_file():
        raise NotADirectoryError(f"{model} is a file. Give the checkpoint's folder.")
    if not _HUB_NAME.fullmatch(model):
        raise FileNotFoundError(f"There is no folder {model}.")


def check_folder(model: str) -> None:
    """Refuse a folder with files that vLLM and transformers should not open.

    Args:
        model: Folder, or name on the hub, which has regular files only.

    Raises:
        ValueError: Names a file that is not regular, or too large for its kind.
    """
    for file in Path(model).iterdir() if Path(model).is_dir() else ():
        if not file.is_dir():
            check_regular(file)
        if file.suffix in (".json", ".jinja"):
            check_size(file, _most(file))


def read_json(model: str, name: str) -> dict[str, Any]:
    """Content of a data file of a checkpoint, from its folder or the hub.

    Raises:
        OSError: The file is missing; names the model.
        ValueError: Names the file that does not contain a JSON object.
    """
    return read_object(find_file(model, name))


def read_object(file: Path) -> dict[str, Any]:
    """Content of a JSON file.

    Raises:
        OSError: It cannot be read.
        ValueError: Names the file that is not a regular one, is larger than such files
            are, or does not contain a JSON object.
    """
    text = read_text(file, _most(file))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not contain a JSON object.")
    return content


def _most(file: Path) -> int:
    return MOST_TOKENIZER_BYTES if file.name == "tokenizer.json" else MOST_BYTES


def added_token_ids(model: str) -> dict[str, int]:
    """Ids of the tokens that the tokenizer adds to its vocabulary.

    Raises:
        OSError: ``tokenizer.json`` is missing.
        ValueError: Says what is wrong with the file.
    """
    added = read_json(model, "tokenizer.json").get("added_tokens") or []
    try:
        return {token["content"]: int(token["id"]) for token in added}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"tokenizer.json: added_tokens cannot be read: {error!r}. Use the "
            "tokenizer of the checkpoint."
        ) from error


def code_repositories(model: str) -> list[str]:
    """Whose code a checkpoint asks to run: itself, and those that it names.

    Raises:
        OSError: Its configuration is missing.
        ValueError: It names no code.
    """
    config = read_json(model, "config.json")
    maps = (config.get("auto_map"), (config.get("vision_config") or {}).get("auto_map"))
    classes = [name for one in maps if one for name in one.values()]
    if not classes:
        raise ValueError(f"{model} has no code of its own: no auto_map in config.json.")
    names = [c.split("--")[0] if "--" in c else model for c in classes]
    return [*dict.fromkeys(names)]


def is_quantised_checkpoint(folder: Path) -> bool:
    """Whether one of the configurations of a folder declares quantised tensors."""
    config = read_json(str(folder), "config.json")
    parts = (config, config.get("llm_config") or {})
    return (
        any(part.get("quantization_config") for part in parts)
        or (folder / "hf_quant_config.json").exists()  # ModelOpt writes it
    )


def read_headers(model: str) -> dict[str, Header]:
    """Headers of all safetensors files of a checkpoint.

    Raises:
        FileNotFoundError: There are none.
        ValueError: Names the file that is damaged.
    """
    if Path(model).is_dir():
        return headers_of_folder(Path(model))
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        files = get_safetensors_metadata(model).files_metadata.values()
    except NotASafetensorsRepoError as error:
        raise FileNotFoundError(f"{model} has no safetensors files.") from error
    return {
        name: Header(tuple(info.shape), info.dtype)
        for file in files
        for name, info in file.tensors.items()
    }


def headers_of_folder(folder: Path) -> dict[str, Header]:
    """Headers of all safetensors files of a folder.

    Raises:
        FileNotFoundError: There are none.
        ValueError: Names the file that is damaged or not a regular one.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        check_regular(file)
        try:
            with safe_open(file, "np") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    tensor = opened.get_slice(name)
                    found[name] = Header(tuple(tensor.get_shape()), tensor.get_dtype())
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged: {error}. Download it again."
            ) from error
    if not found:
        raise FileNotFoundError(f"{folder} holds no safetensors files.")
    return found


def write_json(file: Path, value: Any) -> None:
    """Write a data file as a checkpoint has it."""
    with naming(file):
        file.write_text(json.dumps(value, indent=2) + "\n")
