"""Tensors of requests are read as by `torch.load`, or refused with a cause."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bad_tensors import compressed, repeated, saved_tensor, slow_pickle
from support.hostile import bounded_memory
from vllm_nemotron_vl.multimodal.nemotron_vl_tensors import (
    UnreadableTensor,
    read_tensor,
)

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]
SHAPES = [(), (3,), (3, 4), (300, 70), (3, 4, 5), (2, 3, 4, 5), (0, 4), (1, 2, 3, 4, 5)]


def as_numpy(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, tensor.numpy())
    return file.getvalue()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_are_read(shape, dtype):
    tensor = (100 * torch.rand(shape)).to(dtype)
    views = [tensor, tensor.mT if len(shape) > 1 else tensor, tensor[None, ..., None]]
    if len(shape) and len(tensor) > 1:
        views.append(tensor[1:])
    for view in views:
        found = read_tensor(saved_tensor(view))
        assert (found.dtype, found.shape) == (dtype, view.shape)
        assert found.equal(view)
    if dtype is not torch.bfloat16:
        assert read_tensor(as_numpy(tensor)).equal(tensor)


def promising(shape: tuple[int, ...]) -> bytes:
    """A NumPy file of a header alone."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


ROWS = torch.zeros(40, 30)
BAD = {
    "repeated": (repeated(256), "some repeat"),
    "overlapping": (saved_tensor(torch.zeros(99).unfold(0, 9, 1)), "repeat"),
    "compressed": (compressed(256), "compressed"),
    "slow pickle": (slow_pickle(60), "not a plain tensor"),
    "long pickle": (slow_pickle(2000), "more than a tensor"),
    "list": (saved_tensor([ROWS]), "not a plain tensor"),
    "parameter": (saved_tensor(torch.nn.Parameter(ROWS)), "not a plain tensor"),
    "sparse": (saved_tensor(ROWS.to_sparse()), "not a plain tensor"),
    "complex": (saved_tensor(ROWS.to(torch.complex64)), "kind ComplexFloatStorage"),
    "cut off": (saved_tensor(ROWS)[:-300], "damaged"),
    "nothing": (b"", "damaged"),
    "NumPy cut off": (as_numpy(ROWS)[:-1], "damaged"),
    "NumPy of 2 GB": (promising((2 << 20, 256)), "damaged"),
    "NumPy of exabytes": (promising((1 << 30, 1 << 30)), "damaged"),
    "NumPy without a header": (b"\x93NUMPY\1\0", "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_cause(name):
    data, cause = BAD[name]
    with bounded_memory(50), pytest.raises(UnreadableTensor, match=cause):
        read_tensor(data)


FILES = [saved_tensor(ROWS), saved_tensor(ROWS[::2].mT), as_numpy(ROWS)]


@settings(max_examples=500, deadline=None)
@given(
    data=st.sampled_from(FILES),
    places=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255))),
)
def test_damaged_files_are_read_or_refused(data, places):
    damaged = bytearray(data)
    for place, value in places:
        damaged[place % len(data)] = value
    try:
        found = read_tensor(bytes(damaged))
    except UnreadableTensor:
        return
    assert found.nbytes <= len(data)
