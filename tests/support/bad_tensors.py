"""Small files with which `torch.load` takes much memory or time."""

import io
import zipfile

import torch


def saved_tensor(tensor: torch.Tensor, **options) -> bytes:
    file = io.BytesIO()
    torch.save(tensor, file, **options)
    return file.getvalue()


def repeated(width: int) -> bytes:
    """One row, whose stride makes it a tensor of 2 GB: the most that vLLM allows."""
    row = torch.zeros(1, width)
    return saved_tensor(row.expand((1 << 31) // row.nbytes, width))


def compressed(width: int, megabytes: int = 100) -> bytes:
    """A tensor in an archive of a thousandth of its size."""
    zeros = torch.zeros(megabytes * 1_000_000 // (4 * width), width)
    return _rewritten(saved_tensor(zeros), zipfile.ZIP_DEFLATED)


def slow_pickle(levels: int) -> bytes:
    """A pickle of a key of tuples in tuples, whose hash takes 2**levels steps."""
    key = b")q\0" + levels * b"h\0h\0\x86q\0"
    pickled = b"\x80\2" + key + b"}h\0Ns."
    return _rewritten(saved_tensor(torch.zeros(1)), zipfile.ZIP_STORED, pickled)


def _rewritten(data: bytes, compression: int, pickled: bytes = b"") -> bytes:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(file, "w", compression, compresslevel=9) as target,
    ):
        for name in source.namelist():
            other = pickled if name.endswith("data.pkl") else b""
            target.writestr(name, other or source.read(name))
    return file.getvalue()
