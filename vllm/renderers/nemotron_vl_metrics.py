# SPDX-License-Identifier: Apache-2.0
"""Prometheus counters of an API server: tokens of images, and refused requests."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from vllm.exceptions import VLLMClientError

# The first cause whose pattern is found in the message of a refusal.
CAUSES = {
    "too_many": r"At most \d+ \w+\(s\) may be provided",
    "too_long": "maximum (context|model) length",
    "too_large": r"at most \d+ (pixels )?are allowed|a side may have at most|"
    r"limit of \d+ pixels|exceed the maximum of|VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB",
    "not_allowed": "allowed domains|--allowed-local-media-path|disabled by default|"
    "--enable-mm-embeds",
    "not_fetched": "could not be fetched",
    "placeholder": r"placeholder\(s\) for",
    "unreadable": "cannot be (read|decoded)|Failed to load",
    "other": "",
}
# Types of errors that vLLM answers with a 4xx.
_REFUSALS = (VLLMClientError, ValueError, TypeError, OverflowError)


@cache
def _counters() -> tuple[Any, Any]:
    """Made at the first request: before it, vLLM unregisters all its metrics."""
    from prometheus_client import Counter

    tokens = Counter(
        "vllm:mm_prompt_tokens",
        "Tokens of prompts that stand for images or videos.",
        ["modality"],
    )
    refused = Counter(
        "vllm:mm_requests_refused",
        "Requests that the renderer refused, or whose prompts are too long.",
        ["cause"],
    )
    for cause in CAUSES:
        refused.labels(cause)
    return tokens, refused


def cause_of(message: str) -> str:
    """The label of a refusal with this message."""
    return next(cause for cause, text in CAUSES.items() if re.search(text, message))


@contextlib.contextmanager
def counted_refusals() -> Iterator[None]:
    """Count the errors of the block that are the client's."""
    refused = _counters()[1]
    try:
        yield
    except _REFUSALS as error:
        refused.labels(cause_of(str(error))).inc()
        raise


def count_prompts(prompts: Sequence[Any], max_tokens: int | None) -> None:
    """Count the tokens of rendered prompts.

    Args:
        prompts: Inputs of the engine.
        max_tokens: Longest prompt with its answer. The engine's client refuses
            longer ones, after they were rendered. None if it does not get them.
    """
    tokens, refused = _counters()
    lengths = [len(p.get("prompt_token_ids") or ()) for p in prompts]
    if max_tokens is not None and max(lengths, default=0) >= max_tokens:
        refused.labels("too_long").inc()
        return
    for prompt in prompts:
        for modality, places in prompt.get("mm_placeholders", {}).items():
            tokens.labels(modality).inc(sum(p.get_num_embeds() for p in places))
