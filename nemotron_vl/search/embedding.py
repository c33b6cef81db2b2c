# SPDX-License-Identifier: Apache-2.0
"""Pages and questions become vectors, through the embeddings API of a server."""

import asyncio
import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vllm_nemotron_vl.config.nemotron_vl_names import (
    CONTEXT_TOKEN,
    IMAGE_END,
    IMAGE_START,
    IMAGE_TOKEN,
)

from ..documents.pages import Page
from ..documents.reading import Refusal, ServerFailure, introduced, read_answers
from ..documents.requests import image_part
from ..documents.served import Asked

if TYPE_CHECKING:
    import openai

TILES = 6  # `max_input_tiles` as published
CONTEXT = 10240  # tokens, as evaluated on the model card
_TRIAL = "Which page?"
_NO_API = (404, 405, 501)
_TOKENS = (IMAGE_TOKEN, IMAGE_START, IMAGE_END, CONTEXT_TOKEN)


@dataclass(frozen=True)
class Embedder(Asked):
    """A model that embeds pages.

    Args:
        question: What is embedded without a page.
        image_tokens: Most tokens of an image.
        dimension: Of the vectors; 0 if it is not known yet.
    """

    question: str = _TRIAL
    image_tokens: int = 0
    dimension: int = 0
    path = "/embeddings"

    def request(self, pages: Sequence[Page]) -> dict[str, Any]:
        """With the text of a page, if it has one."""
        (page,) = pages
        return self._request("document", content_of(page, self, self.image_tokens))

    def trial(self) -> dict[str, Any]:
        return self._request("query", [{"type": "text", "text": self.question}])

    def _request(self, role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        message = {"role": role, "content": content}
        return {"model": self.model, "messages": [message], "encoding_format": "float"}

    def record(self, answer: Any, pages: Sequence[Page]) -> dict[str, Any]:
        from ..documents.client import Embeddings, MalformedAnswer, parsed

        vector = parsed(Embeddings, answer).data[0].embedding
        if self.dimension and len(vector) != self.dimension:
            raise MalformedAnswer(
                f"The server sent {len(vector)} numbers, not {self.dimension}."
            )
        return {"vector": vector}


def content_of(page: Page, asked: Asked, image_tokens: int) -> list[dict[str, Any]]:
    """A page's image and, if it has one, its text.

    Args:
        page: The page.
        asked: The model. The text is cut to what fits its context beside the image: a
            token is at least a byte.
        image_tokens: Most tokens of the image.
    """
    text = page.text or ""
    for token in _TOKENS:
        text = text.replace(token, " ")
    room = max(0, asked.room(CONTEXT) - image_tokens)
    text = text.encode()[:room].decode(errors="ignore")
    parts = [{"type": "text", "text": text}] if text else []
    return [image_part(page), *parts]


async def find_embedder(
    client: "openai.AsyncOpenAI",
    question: str = _TRIAL,
    model: str | None = None,
    timeout: float = 1800,
    image_tokens: int = 0,
) -> tuple[Embedder, list[float]]:
    """The embedding model of a server, and the vector of a question.

    Args:
        client: Client of the server.
        question: What is embedded.
        model: Its name; by default the server's first.
        timeout: Seconds for all of it, with all retries.
        image_tokens: See `Embedder`.

    Raises:
        ServerFailure: No server answers.
        ValueError: The question is empty, the server refuses it, or it has no
            embeddings API.
    """
    if not question.strip():
        raise ValueError("The question is empty.")
    make = partial(Embedder, question=question, image_tokens=image_tokens)
    with explained("embeds pages", client):
        embedder, record = await introduced(client, make, model, timeout)
    vector = record["vector"]
    return replace(embedder, dimension=len(vector)), vector


async def embed_trial_page(
    client: "openai.AsyncOpenAI",
    embedder: Embedder,
    timeout: float = 1800,
    ended: asyncio.Future | None = None,
) -> list[float]:
    """The vector of a page by which servers with other tiles or adapters differ.

    Args:
        client: Client of the server.
        embedder: Its model.
        timeout: Seconds for the answer, with all retries.
        ended: See `read_answers`.

    Raises:
        ServerFailure: The server does not answer.
    """
    image = trial_page()
    file = io.BytesIO()
    image.save(file, "PNG")
    page = Page("trial", 1, file.getvalue(), "image/png", image.size)
    groups = iter([(page,)])
    answers = read_answers(client, embedder, groups, 1, timeout, ended)
    (record,) = [record async for record in answers]
    if "error" in record:
        raise ServerFailure(f"The server embeds no page. {record['error']}")
    return record["vector"]


def trial_page() -> Image.Image:
    """A strip with details of all sizes.

    It is cut into as many tiles as a server allows, up to 24, all in one row.
    """
    x, y = np.arange(24 * 64), np.arange(64)[:, None]
    return Image.fromarray((x ^ y).astype(np.uint8))


@contextlib.contextmanager
def explained(does: str, client: "openai.AsyncOpenAI") -> Iterator[None]:
    """Say what a server should be that refuses all requests to an API."""
    try:
        yield
    except Refusal as refusal:
        if refusal.status not in _NO_API:
            raise
        message = f"{client.base_url} is no server of a model that {does}. {refusal}"
        raise ValueError(message) from refusal
