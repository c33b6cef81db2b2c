# SPDX-License-Identifier: Apache-2.0
"""What a server is asked about pages, and what its answers become."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .answers import compared, record_of
from .pages import Page
from .requests import Question

_SPARE = 64  # tokens of a chat template


@dataclass(frozen=True)
class Asked(ABC):
    """A model of a server, and an API of it.

    Args:
        model: Its name.
        context: Most tokens of a request and its answer, where the server says it.

    ``path`` is where requests go, below ``/v1``.
    """

    model: str
    context: int | None
    path: ClassVar[str]

    @property
    def nothing(self) -> Any:
        """The answer about a blank page."""
        return None

    @abstractmethod
    def request(self, pages: Sequence[Page]) -> dict[str, Any]:
        """The body of a request about pages."""

    @abstractmethod
    def trial(self) -> dict[str, Any]:
        """A small request without a page: whether the server takes all but images."""

    @abstractmethod
    def record(self, answer: Any, pages: Sequence[Page]) -> dict[str, Any]:
        """What a record says of an answer.

        Raises:
            MalformedAnswer: It is not of this API.
        """

    def trial_record(self, answer: Any) -> dict[str, Any]:
        """What a record says of the answer to a trial, see `record`."""
        return self.record(answer, [])

    def room(self, context: int) -> int:
        """Tokens of the pages that fit beside the question and its answer.

        Args:
            context: If the server does not say it.
        """
        return (self.context or context) - _SPARE


@dataclass(frozen=True)
class Served(Asked):
    """A model that answers a question.

    Args:
        question: What is asked, in the form that the server takes.
    """

    question: Question
    path = "/chat/completions"

    @property
    def nothing(self) -> Any:
        return "" if self.question.schema is None else None

    def request(self, pages: Sequence[Page]) -> dict[str, Any]:
        return self.question.chat_request(pages, self.model)

    def trial(self) -> dict[str, Any]:
        return self.question.trial_request(self.model)

    def record(self, answer: Any, pages: Sequence[Page]) -> dict[str, Any]:
        from .client import Completion, MalformedAnswer, parsed

        completion = parsed(Completion, answer)
        choice = completion.choices[0] if completion.choices else None
        if choice is None or choice.message.content is None:
            raise MalformedAnswer("The server sent no answer.")
        text, usage = choice.message.content, completion.usage
        record = record_of(self.question, text, choice.finish_reason)
        if usage is not None:
            record["tokens"] = {
                "prompt": usage.prompt_tokens,
                "answer": usage.completion_tokens,
            }
        layers = [page.text for page in pages if page.text]
        if layers and "error" not in record:
            layer, schema = "\n".join(layers), self.question.schema
            record["text_layer"] = compared(record["answer"], layer, schema)
        return record

    def trial_record(self, answer: Any) -> dict[str, Any]:
        from .client import Completion, parsed

        parsed(Completion, answer)  # one token may be no text
        return {}

    def room(self, context: int) -> int:
        question = self.question
        asked = question.prompt + (question.system or "")
        # More than the tokens of the question.
        taken = question.max_tokens + len(asked.encode()) // 2
        return super().room(context) - taken
