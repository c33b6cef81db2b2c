"""How many processes run the tests."""

import os

import psutil

# Of memory, for a worker with the engines and servers that it starts.
GIGABYTES = 6


def workers(cores: int, gigabytes: float) -> int:
    """One more than cores, because some tests wait; what the memory allows."""
    return max(1, min(cores + 1, int(gigabytes // GIGABYTES)))


def workers_here() -> int:
    return workers(len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 10**9)
