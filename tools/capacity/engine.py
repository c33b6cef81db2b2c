# SPDX-License-Identifier: Apache-2.0
"""The rates of an engine on a kind of GPU: pages, requests at once.

Times are a page's operations over a share of the GPU's peak, and bytes over a share of
its bandwidth.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .data import Gpu
from .work import PageWork

GB = 1e9
_BYTES = 2  # of a value in 16 bits


@dataclass(frozen=True)
class Assumptions:
    """What the plan assumes.

    Attributes:
        question_tokens: Text of the prompt: question and chat template.
        answer_tokens: Tokens of an answer.
        compute_share: Share of the dense peak that matrix products reach.
        bandwidth_share: Share of the peak bandwidth that decoding reaches.
        gpu_memory_utilization: Share of the GPU's memory that vLLM takes, its default.
        other_gb: Part of that for activations and CUDA graphs.
        network_gbit: Gbit/s of a network link.
        fp8: Whether linear layers of the language model compute in FP8.
    """

    question_tokens: int = 64
    answer_tokens: int = 256
    compute_share: float = 0.4
    bandwidth_share: float = 0.7
    gpu_memory_utilization: float = 0.92
    other_gb: float = 2.0
    network_gbit: float = 100.0
    fp8: bool = False


@dataclass(frozen=True)
class Engine:
    """An engine with a share of the model, on one GPU or on several ranks.

    Attributes:
        encode: Seconds to encode a page; 0 without the tower.
        prefill: Seconds of the language model for its prompt; 0 without it.
        read: Seconds to read the language model's weights once.
        read_context: Seconds to read the keys and values of one request.
        decode: Seconds to compute one token of one request.
        answer_tokens: Tokens of an answer; 0 if the engine does not answer.
        most_sequences: Requests that fit into the memory.
    """

    encode: float
    prefill: float
    read: float
    read_context: float
    decode: float
    answer_tokens: int
    most_sequences: int

    @property
    def page(self) -> float:
        """Seconds of the encoder and the prompt of a page."""
        return self.encode + self.prefill

    def step(self, sequences: float) -> float:
        """Seconds to decode one token of each of so many requests."""
        reading = self.read + sequences * self.read_context
        return max(reading, sequences * self.decode)

    @property
    def most_pages(self) -> float:
        """Pages a second at which it saturates."""
        if not self.answer_tokens:
            return 1 / self.page
        full = self.most_sequences
        return 1 / (self.page + self.answer_tokens * self.step(full) / full)


@dataclass(frozen=True)
class Engines:
    """Engines that encode and answer, and those that do one of the two."""

    whole: Engine
    encoder: Engine
    language: Engine


def cache_bytes(gpu: Gpu, weights: int, assumed: Assumptions) -> float:
    """What weights leave of a GPU's memory for the KV cache."""
    taken = assumed.gpu_memory_utilization * gpu.gib * 2**30
    return taken - assumed.other_gb * GB - weights


def make_engines(
    work: PageWork, report: dict[str, Any], gpu: Gpu, assumed: Assumptions
) -> Engines:
    """Engines for a checkpoint.

    Args:
        work: Work of a page.
        report: What `inspection.inspect` returns. With several ranks, each has an equal
            share of the work; their communication is left out.
        gpu: Kind of GPU of each rank.
        assumed: Shares of the peaks, and the length of an answer.

    Raises:
        ValueError: The GPU cannot hold the checkpoint and a request, or the engine
            computes in float32.
    """
    if report["dtype"] == "float32":
        raise ValueError("GPUs are planned for 16-bit engines: add --dtype bfloat16.")
    tp = report["tp"]
    rate = assumed.compute_share * gpu.bf16 * 1e12 * tp
    linear_rate = rate
    if assumed.fp8:
        linear_rate *= gpu.fp8 / gpu.bf16
    bandwidth = assumed.bandwidth_share * gpu.bandwidth * 1e12
    language_bytes = report["parts"]["language model"]["rank_bytes"]
    encoder_bytes = sum(part["rank_bytes"] for part in report["parts"].values())
    encoder_bytes -= language_bytes
    request = (work.prompt_tokens + assumed.answer_tokens) * report[
        "kv_bytes_per_token"
    ]

    def sequences(weights: int) -> int:
        fit = int(cache_bytes(gpu, weights, assumed) // request)
        if fit < 1:
            raise ValueError(
                f"{gpu.gib:g} GiB of the {gpu.title} do not hold "
                f"{weights / GB:.1f} GB of weights and a request of "
                f"{request / GB:.1f} GB. Raise --tp, or quantise the checkpoint."
            )
        return min(fit, gpu.max_num_seqs)

    mean_request = request - assumed.answer_tokens / 2 * report["kv_bytes_per_token"]
    whole = Engine(
        encode=(work.tower + work.connector) / rate,
        prefill=work.prefill / linear_rate + work.prefill_attention / rate,
        read=(language_bytes - work.unread_parameters * _BYTES / tp) / bandwidth,
        read_context=mean_request / bandwidth,
        decode=work.decode / linear_rate,
        answer_tokens=assumed.answer_tokens,
        most_sequences=sequences(language_bytes + encoder_bytes),
    )
    return Engines(
        whole=whole,
        encoder=dataclasses.replace(whole, prefill=0, answer_tokens=0),
        language=dataclasses.replace(
            whole, encode=0, most_sequences=sequences(language_bytes)
        ),
    )
