# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of an engine, for pages that it has not seen."""

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageChops

from .documents import Question, draw_documents
from .reading import messages

if TYPE_CHECKING:
    from vllm import LLM

_ROUNDS, _TOKENS, _PAGES = 5, 64, 32
_SHADES = 16  # of each channel
_numbers = itertools.count()


def measure(
    llm: "LLM", rounds: int = _ROUNDS, tokens: int = _TOKENS, pages: int = _PAGES
) -> dict[str, Any]:
    """Measure an engine of this process.

    Args:
        llm: Without caches of processed images. With the methods of
            `EncoderComparison`, its memory is measured, too.
        rounds: Pages that are asked about alone.
        tokens: Length of an answer in tokens.
        pages: That are asked about at once.

    Returns:
        ``first_token_ms`` and ``tokens_per_s`` of one page at a time (medians),
        ``pages_per_s`` and ``batch_tokens_per_s`` of all pages at once, and
        ``memory_gb`` of each worker.
    """
    _seconds(llm, 1, tokens)  # compiles and warms up
    first = [_seconds(llm, 1, 1) for _ in range(rounds)]
    whole = [_seconds(llm, 1, tokens) for _ in range(rounds)]
    decoding = statistics.median(whole) - statistics.median(first)
    batch = _seconds(llm, pages, tokens)
    return {
        "first_token_ms": 1000 * statistics.median(first),
        "tokens_per_s": (tokens - 1) / decoding,
        "pages_per_s": pages / batch,
        "batch_tokens_per_s": pages * tokens / batch,
        "memory_gb": llm.collective_rpc("nemotron_vl_memory"),
        "rounds": rounds,
        "tokens": tokens,
        "pages": pages,
    }


def _seconds(llm: "LLM", pages: int, tokens: int) -> float:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    chats: Any = [messages(_new_page()) for _ in range(pages)]
    start = time.perf_counter()
    llm.chat(chats, sampling, use_tqdm=False)
    return time.perf_counter() - start


def _new_page() -> Question:
    """An invoice on paper of another shade.

    No tile of it is equal to a tile of an earlier page, so no cache knows one.
    """
    question = draw_documents(2)[1]
    (page,) = question.images
    number = next(_numbers)
    shade = tuple(number // _SHADES**channel % _SHADES for channel in range(3))
    page = ImageChops.subtract(page, Image.new("RGB", page.size, shade))
    return question._replace(images=[page])
