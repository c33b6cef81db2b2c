# SPDX-License-Identifier: Apache-2.0
"""Pages are ranked for a question, through the rerank API of a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..documents.pages import Page
from ..documents.reading import introduced
from ..documents.served import Asked
from .embedding import content_of, explained

if TYPE_CHECKING:
    import openai


@dataclass(frozen=True)
class Ranker(Asked):
    """A model that says how well a page answers a question.

    Args:
        question: The question.
        image_tokens: Most tokens of an image.
    """

    question: str
    image_tokens: int = 0
    path = "/rerank"

    def request(self, pages: Sequence[Page]) -> dict[str, Any]:
        tokens = self.image_tokens + len(self.question.encode())
        return self._request(
            [{"content": content_of(page, self, tokens)} for page in pages]
        )

    def trial(self) -> dict[str, Any]:
        return self._request(["A page."])

    def _request(self, documents: list[Any]) -> dict[str, Any]:
        query = {"model": self.model, "query": self.question}
        return query | {"documents": documents}

    def record(self, answer: Any, pages: Sequence[Page]) -> dict[str, Any]:
        from ..documents.client import Scores, parsed

        return {"score": parsed(Scores, answer).results[0].relevance_score}


async def find_ranker(
    client: "openai.AsyncOpenAI",
    question: str,
    timeout: float = 1800,
    image_tokens: int = 0,
) -> Ranker:
    """The ranking model of a server, after a request without a page.

    Args:
        client: Client of the server.
        question: The question.
        timeout: Seconds for the answer, with all retries.
        image_tokens: See `Ranker`.

    Raises:
        ServerFailure: No server answers.
        ValueError: It refuses the question, or has no rerank API.
    """
    make = partial(Ranker, question=question, image_tokens=image_tokens)
    with explained("ranks pages", client):
        ranker, _ = await introduced(client, make, None, timeout)
    return ranker
