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
        bf16: Dense peak in TFLOP/s.
        fp8: The same, ``None`` if it has no FP8.
        bandwidth: Bandwidth of its memory in TB/s.
        memory: In GB.
        max_num_batched_tokens: vLLM's default for an API server.
        max_num_seqs: Likewise.
        source: Where the peaks were published.
    """

    title: str
    bf16: float
    bandwidth: float
    memory: float
    max_num_batched_tokens: int
    max_num_seqs: int
    source: str
    fp8: float | None = None


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
