# SPDX-License-Identifier: Apache-2.0
"""Measured costs of the front end and published peaks of GPUs, with their sources."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("costs.toml")


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        title: Its full name.
        capability: Its compute capability.
        bf16: Dense peak in TFLOP/s.
        fp8: The same in FP8.
        bandwidth: Bandwidth of its memory in TB/s.
        gib: Its memory in GiB, as CUDA reports it.
        max_num_seqs: vLLM's default for an API server.
        source: Where the peaks were published.
    """

    title: str
    capability: float
    bf16: float
    fp8: float
    bandwidth: float
    gib: float
    max_num_seqs: int
    source: str


@dataclass(frozen=True)
class FrontEnd:
    """What a page costs in the API server on a kind of CPU.

    Attributes:
        title: The kind of CPU.
        page: What was measured.
        request_bytes: Size of its file.
        in_tree_ms: Milliseconds of one thread with vLLM's in-tree processing.
        ours_ms: With this package's.
        measured: The benchmark.
    """

    title: str
    page: str
    request_bytes: int
    in_tree_ms: float
    ours_ms: float
    measured: str


def read_data() -> tuple[dict[str, FrontEnd], dict[str, Gpu]]:
    """Kinds of CPUs and of GPUs by their short names."""
    data = tomllib.loads(FILE.read_text())
    front_ends = {name: FrontEnd(**entry) for name, entry in data["front_end"].items()}
    return front_ends, {name: Gpu(**entry) for name, entry in data["gpu"].items()}
