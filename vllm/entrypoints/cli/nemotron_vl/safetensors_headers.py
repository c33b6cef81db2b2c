# SPDX-License-Identifier: Apache-2.0
"""Shapes and types of the tensors in safetensors files, without their values."""

import math
from pathlib import Path
from typing import NamedTuple

from ....model_executor.models.nemotron_vl_layout import Shape

_STORED_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32}


class Header(NamedTuple):
    """What a safetensors file says about a tensor."""

    shape: Shape
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _STORED_BITS.get(self.dtype, 8) // 8


def read_headers(folder: Path) -> dict[str, Header]:
    """Headers of all safetensors files of a folder.

    Raises:
        FileNotFoundError: There are none.
        ValueError: Names the file that is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
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
