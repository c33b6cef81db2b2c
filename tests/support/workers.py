"""How many processes run the tests."""

from pathlib import Path

import psutil

from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
    threads,
)

# Of memory, for a worker with the engines and servers that it starts.
GIGABYTES = 6
# Of a container, whose control group is the root that it sees.
MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def workers(cores: int, gigabytes: float) -> int:
    """One more than cores, because some tests wait; what the memory allows."""
    return max(1, min(cores + 1, int(gigabytes // GIGABYTES)))


def workers_here(root: Path = Path("/sys/fs/cgroup")) -> int:
    """What this process may use of the machine, by the limits of its control group."""
    memory = psutil.virtual_memory().total
    for name in MEMORY_LIMITS:
        if (root / name).exists() and (text := (root / name).read_text()) != "max\n":
            memory = min(memory, int(text))
    return workers(threads.share_of_cores(1), memory / 10**9)
