# SPDX-License-Identifier: Apache-2.0
"""The rates of an engine on a kind of GPU: pages, requests at once, first token.

Times are a page's operations over a share of the GPU's peak, and bytes over a share of
its bandwidth.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .data import Gpu
from .queueing import place_quantile, wait_quantile
from .work import PageWork

GB = 1e9
_BYTES = 2  # of a value in 16 bits


@dataclass(frozen=True)
class Assumptions:
    """What the plan assumes. All but `other_gb` are options of `nemotron-vl inspect`.

    Attributes:
        question_tokens: Text of the prompt: question and chat template.
        answer_tokens: Tokens of an answer.
        compute_share: Share of the dense peak that matrix products reach.
        bandwidth_share: Share of the peak bandwidth that decoding reaches.
        utilisation: Share of what it could do that each layer is asked to do.
        gpu_memory_utilization: Share of the GPU's memory that vLLM takes.
        other_gb: Part of that for activations and CUDA graphs.
        network_gbit: Gbit/s of a network link.
        fp8: Whether linear layers of the language model compute in FP8.
    """

    question_tokens: int = 64
    answer_tokens: int = 256
    compute_share: float = 0.4
    bandwidth_share: float = 0.7
    utilisation: float = 0.7
    gpu_memory_utilization: float = 0.9
    other_gb: float = 2.0
    network_gbit: float = 100.0
    fp8: bool = False


@dataclass(frozen=True)
class Engine:
    """An engine with a share of the model, on one GPU or on several ranks.

    Attributes:
        encode: Seconds to encode a page; 0 without the tower.
        prefill: Seconds of the language model for its prompt; 0 without it.
        pages_of_step: Prompts that a step of the engine has room for.
        read: Seconds to read the language model's weights once.
        read_context: Seconds to read the keys and values of one request.
        decode: Seconds to compute one token of one request.
        answer_tokens: Tokens of an answer; 0 if the engine does not answer.
        most_sequences: Requests that fit into the memory.
    """

    encode: float
    prefill: float
    pages_of_step: float
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
        if not sequences:
            return 0.0
        reading = self.read + sequences * self.read_context
        return max(reading, sequences * self.decode)

    @property
    def most_pages(self) -> float:
        """Pages a second at which it saturates."""
        if not self.answer_tokens:
            return 1 / self.page
        full = self.most_sequences
        return 1 / (self.page + self.answer_tokens * self.step(full) / full)

    def sequences(self, rate: float) -> float:
        """Requests that are decoded at once, at ``rate`` pages a second.

        Of each second, ``rate * page`` goes to new pages; the steps of the rest must
        bring all tokens of the answers.

        Raises:
            ValueError: The engine cannot keep up.
        """
        if not self.answer_tokens:
            return 0.0
        if rate > self.most_pages * (1 + 1e-9):
            raise ValueError(f"{rate} pages a second are more than {self.most_pages}.")
        left, tokens = 1 - rate * self.page, rate * self.answer_tokens
        low, high = 0.0, float(self.most_sequences)
        while high - low > 1e-6 * high:
            middle = (low + high) / 2
            enough = middle * left >= tokens * self.step(max(1.0, middle))
            low, high = (low, middle) if enough else (middle, high)
        return high

    def first_token(self, rate: float) -> float:
        """p99 of the seconds from a page's arrival to its first token.

        The engine is a queue that takes page by page. A page also waits for a place
        in the memory, for the decoding in the steps that it takes part in, for the
        step under way, and for the other pages of its own step.

        Raises:
            ValueError: The engine has no time or no memory left.
        """
        answers = self.sequences(rate)
        decoding = self.step(max(1.0, answers)) if self.answer_tokens else 0.0
        service = self.page + math.ceil(1 / self.pages_of_step) * decoding
        beside = max(0.0, self.pages_of_step - 1) * self.page
        seconds = within(service, rate) + decoding + beside
        if not self.answer_tokens:
            return seconds
        load = answers + rate * service
        if load >= self.most_sequences:
            raise ValueError(
                f"The memory holds {self.most_sequences} requests: lower --utilisation."
            )
        return seconds + load / rate * place_quantile(self.most_sequences, load)


def within(service: float, rate: float) -> float:
    """p99 of the seconds in a queue and at its server.

    Raises:
        ValueError: The server has no time left.
    """
    busy = service * rate
    if busy > 0.99:
        raise ValueError(
            f"Prompts keep an engine busy for {busy:.0%} of the time: lower "
            "--utilisation."
        )
    return service * (1 + wait_quantile(busy))


@dataclass(frozen=True)
class Engines:
    """Engines that encode and answer, and those that do one of the two."""

    whole: Engine
    encoder: Engine
    language: Engine


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
        ValueError: The GPU cannot hold the checkpoint and a request, has no FP8, or
            the engine computes in float32.
    """
    if report["dtype"] == "float32":
        raise ValueError("GPUs are planned for 16-bit engines: add --dtype bfloat16.")
    if assumed.fp8 and gpu.fp8 is None:
        raise ValueError(f"The {gpu.title} has no FP8.")
    tp = report["tp"]
    rate = assumed.compute_share * gpu.bf16 * 1e12 * tp
    linear_rate = rate
    if assumed.fp8 and gpu.fp8:
        linear_rate *= gpu.fp8 / gpu.bf16
    bandwidth = assumed.bandwidth_share * gpu.bandwidth * 1e12
    language_bytes = report["parts"]["language model"]["rank_bytes"]
    encoder_bytes = sum(part["rank_bytes"] for part in report["parts"].values())
    encoder_bytes -= language_bytes
    request = (work.prompt_tokens + assumed.answer_tokens) * report[
        "kv_bytes_per_token"
    ]

    def sequences(weights: int) -> int:
        memory = assumed.gpu_memory_utilization * gpu.memory - assumed.other_gb
        fit = int((memory * GB - weights) // request)
        if fit < 1:
            raise ValueError(
                f"{gpu.memory:g} GB of the {gpu.title} do not hold "
                f"{weights / GB:.1f} GB of weights and a request of "
                f"{request / GB:.1f} GB. Raise --tp, or quantise the checkpoint."
            )
        return min(fit, gpu.max_num_seqs)

    mean_request = request - assumed.answer_tokens / 2 * report["kv_bytes_per_token"]
    whole = Engine(
        encode=(work.tower + work.connector) / rate,
        prefill=work.prefill / linear_rate + work.prefill_attention / rate,
        pages_of_step=gpu.max_num_batched_tokens / work.prompt_tokens,
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
