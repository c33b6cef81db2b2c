"""The processes that run the tests fit the machine."""

import pytest

from support.workers import workers


@pytest.mark.parametrize(
    ("cores", "gigabytes", "number"),
    [(1, 8, 1), (2, 24, 3), (4, 16, 2), (4, 64, 5), (16, 64, 10), (64, 1000, 65)],
)
def test_cores_and_memory_bound_them(cores, gigabytes, number):
    assert workers(cores, gigabytes) == number
