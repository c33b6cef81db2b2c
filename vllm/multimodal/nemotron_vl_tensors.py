# SPDX-License-Identifier: Apache-2.0
"""Tensors that a request brings as a file, read without `torch.load`.

A file of two thousand bytes can give a tensor of gigabytes (a stride of 0, compressed
records), and one of a thousand bytes can keep `torch.load` busy for hours. Here a
tensor has at most the bytes that were sent.
"""

import pickletools
import re
import zipfile
from io import BytesIO

import numpy as np
import torch
from numpy.lib.format import MAGIC_PREFIX

_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
}
# What `torch.save` pickles of a plain tensor: its storage, offset, size and stride. The
# pickle is compared with this, and never run.
_MOST_PICKLED = 4096
_NO_CONTENT = ("PROTO", "BINPUT", "LONG_BINPUT")
_NUMBERS = r"((?:INT \d+\n)*)"
_PLAIN_TENSOR = re.compile(
    r"GLOBAL torch\._utils _rebuild_tensor_v2\nMARK\nMARK\nBINUNICODE storage\n"
    r"GLOBAL torch (\w+)Storage\nBINUNICODE 0\nBINUNICODE [\w:]+\nINT \d+\nTUPLE\n"
    rf"BINPERSID\nINT (\d+)\n(?:MARK\n)?{_NUMBERS}\w*TUPLE\d?\n"
    rf"(?:MARK\n)?{_NUMBERS}\w*TUPLE\d?\n\w+\nGLOBAL collections OrderedDict\n"
    r"EMPTY_TUPLE\nREDUCE\nTUPLE\nREDUCE\nSTOP\n"
)


class UnreadableTensor(ValueError):
    """A file that is no tensor, or not all of one."""


def read_tensor(data: bytes) -> torch.Tensor:
    """Read what ``torch.save`` or ``numpy.save`` has written.

    Args:
        data: The file.

    Returns:
        A tensor on the CPU without repeated numbers.

    Raises:
        UnreadableTensor: It is damaged, compressed, or has more numbers than bytes for
            them; or its numbers are of a kind that is not in `_DTYPES`.
    """
    try:
        if data.startswith(MAGIC_PREFIX):
            return torch.from_numpy(np.load(BytesIO(data)))
        return _read_archive(data)
    except UnreadableTensor:
        raise
    except Exception as error:  # the two formats have all kinds of defects
        raise UnreadableTensor(
            "the data are damaged, or not a tensor that torch.save or numpy.save wrote"
        ) from error


def _read_archive(data: bytes) -> torch.Tensor:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = {m.filename.partition("/")[2]: m for m in archive.infolist()}
        if any(m.compress_type != zipfile.ZIP_STORED for m in members.values()):
            raise UnreadableTensor("its records are compressed")
        if members["data.pkl"].file_size > _MOST_PICKLED:
            raise UnreadableTensor("it is more than a tensor")
        if archive.read(members["byteorder"]) != b"little":
            raise UnreadableTensor("its numbers are not little-endian")
        described = _description(archive.read(members["data.pkl"]))
        numbers = bytearray(archive.read(members["data/0"]))
    kind, offset, size, stride = described.groups()
    if kind not in _DTYPES:
        raise UnreadableTensor(f"its numbers are of the kind {kind}Storage")
    shape, steps = ([*map(int, re.findall(r"\d+", text))] for text in (size, stride))
    if 0 in shape:
        return torch.empty(shape, dtype=_DTYPES[kind])
    stored = torch.frombuffer(numbers, dtype=_DTYPES[kind])
    tensor = stored.as_strided(shape, steps, int(offset))
    if tensor.numel() > len(stored):
        raise UnreadableTensor(
            f"it has {len(stored)} numbers for the shape {tuple(shape)}, so some repeat"
        )
    return tensor


def _description(pickled: bytes) -> re.Match[str]:
    steps = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _NO_CONTENT:
            name = "INT" if isinstance(argument, int) else opcode.name
            steps.append(name if argument is None else f"{name} {argument}")
    if described := _PLAIN_TENSOR.fullmatch("\n".join([*steps, ""])):
        return described
    raise UnreadableTensor("it is not a plain tensor")
