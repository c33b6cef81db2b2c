# SPDX-License-Identifier: Apache-2.0
"""Questions about drawn documents are asked, and the answers are counted."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from .documents import Question
from .images import png_url

if TYPE_CHECKING:
    from openai import OpenAI
    from vllm import LLM

MAX_TOKENS = 32

# Gives the answer to each question.
Ask = Callable[[Sequence[Question]], list[str]]


class Reading(NamedTuple):
    """The answers to questions."""

    questions: list[Question]
    answers: list[str]
    seconds: float

    @property
    def rights(self) -> list[bool]:
        pairs = zip(self.questions, self.answers, strict=True)
        return [is_right(answer, question.answer) for question, answer in pairs]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(self.rights) / len(self.rights)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Right answers and questions of each kind."""
        found: dict[str, tuple[int, int]] = {}
        for question, right in zip(self.questions, self.rights, strict=True):
            done, count = found.get(question.kind, (0, 0))
            found[question.kind] = (done + right, count + 1)
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "questions": len(self.questions),
            "accuracy": self.accuracy,
            "seconds": round(self.seconds, 3),
            "by_kind": {
                kind: {"right": right, "questions": count}
                for kind, (right, count) in self.by_kind().items()
            },
            "wrong": [
                {
                    "number": number,
                    "kind": question.kind,
                    "question": question.text,
                    "right": question.answer,
                    "answer": answer,
                }
                for number, (question, answer, right) in enumerate(
                    zip(self.questions, self.answers, self.rights, strict=True)
                )
                if not right
            ],
        }


def is_right(answer: str, right: str) -> bool:
    """Whether an answer is the right one, up to case and space around it."""
    return answer.strip().lower() == right.strip().lower()


def read(ask: Ask, questions: list[Question]) -> Reading:
    """Ask all questions."""
    start = time.perf_counter()
    answers = ask(questions)
    return Reading(questions, answers, time.perf_counter() - start)


def messages(question: Question, system: str | None = None) -> list[dict[str, Any]]:
    """A question as messages of OpenAI's chat API.

    Args:
        question: With its images.
        system: Text of a system message before it.
    """
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": png_url(image)}}
        for image in question.images
    ]
    content.append({"type": "text", "text": question.text})
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": content}]


def ask_engine(llm: "LLM", system: str | None = None) -> Ask:
    """Ask an engine of this process, all at once.

    Args:
        llm: The engine.
        system: Text of a system message before each question.
    """
    from vllm import SamplingParams

    def ask(questions: Sequence[Question]) -> list[str]:
        sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        chats: Any = [messages(question, system) for question in questions]
        outputs = llm.chat(chats, sampling, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    return ask


def ask_server(
    client: "OpenAI", model: str, at_once: int = 8, system: str | None = None
) -> Ask:
    """Ask a server, some at a time.

    Args:
        client: Client of the server.
        model: Its name on the server.
        at_once: Most requests at a time.
        system: Text of a system message before each question.
    """

    def one(question: Question) -> str:
        answer = client.chat.completions.create(
            model=model,
            messages=messages(question, system),  # type: ignore[arg-type]
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
        return answer.choices[0].message.content or ""

    def ask(questions: Sequence[Question]) -> list[str]:
        with ThreadPoolExecutor(at_once) as pool:
            return [*pool.map(one, questions)]

    return ask
