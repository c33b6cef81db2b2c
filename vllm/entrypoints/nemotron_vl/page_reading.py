# SPDX-License-Identifier: Apache-2.0
"""Pages are sent to a server, a few at a time, and its answers become records.

The server speaks OpenAI's chat API, such as ``vllm serve``. OpenAI's client tries
again, after 0.5 to 8 s or as long as ``Retry-After`` asks, when a connection breaks
or the status is 408, 409, 429 or from 500.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

from .page_questions import Question
from .pages import Page

if TYPE_CHECKING:
    import openai

# Of the client, about two and a half minutes: a server can start again meanwhile.
RETRIES = 20
_RETRIES_AT_START = 3

# These say nothing about the page: wrong key or name, too many requests.
_NOT_THE_PAGE = {401, 403, 404, 429}
# A proxy found no server, or waited too long for it. The page may be the reason.
_OF_A_PROXY = {502, 503, 504}


class ServerFailure(RuntimeError):
    """The server answers no page. Pages without a record can be asked again."""


async def read_answers(
    client: "openai.AsyncOpenAI",
    model: str,
    question: Question,
    pages: Iterator[Page],
    at_once: int,
    timeout: float,
) -> AsyncGenerator[dict[str, Any], None]:
    """Ask about all pages.

    Args:
        client: Of the server. Its ``max_retries`` holds.
        model: Its name on the server.
        question: What is asked.
        pages: Taken in another thread, one by one, as requests end.
        at_once: Most requests at a time, which is also the most pages in memory.
        timeout: Seconds for an answer, with all retries.

    Yields:
        A record for each page, as `PageRecords.append` takes it, in the order of the
        answers. It has either ``error`` or ``answer``, ``finish_reason`` (``length``:
        the answer was cut), ``tokens`` of the prompt and of the answer, and
        ``seconds`` from the request to the answer, with all retries.

    Raises:
        ServerFailure: The server cannot be reached, is overloaded in spite of all
            retries, or refuses the key or the model.
    """
    running: set[asyncio.Task] = set()
    drawing: asyncio.Task | None = None
    more = True
    try:
        while True:
            if more and drawing is None and len(running) < at_once:
                drawing = asyncio.create_task(asyncio.to_thread(next, pages, None))
                running.add(drawing)
            if not running:
                return
            finished, running = await asyncio.wait(
                running, return_when=asyncio.FIRST_COMPLETED
            )
            if drawing in finished:
                finished.remove(drawing)
                page, drawing = drawing.result(), None
                if page is None:
                    more = False
                else:
                    work = _record(client, model, question, page, timeout)
                    running.add(asyncio.create_task(work))
                    del page, work
            # Answers first: a failure ends the run.
            for task in sorted(finished, key=lambda task: task.exception() is not None):
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def find_model(
    client: "openai.AsyncOpenAI", model: str | None, question: Question
) -> str:
    """The name of the server's model, after a request of one token without a page.

    Raises:
        ServerFailure: No server answers.
        ValueError: The server refuses the model, the key or the schema.
    """
    import openai

    impatient = client.with_options(max_retries=_RETRIES_AT_START)
    try:
        if model is None:
            model = (await impatient.models.list()).data[0].id
        trial = question.trial_request(model)
        try:
            await impatient.chat.completions.create(**trial)
        except openai.APIStatusError as error:
            if error.status_code != 429 and error.status_code < 500:
                raise
            await client.chat.completions.create(**trial)  # it is there, but busy
    except openai.APIStatusError as error:
        raise ValueError(
            f"The server refuses requests: {_status_message(error)}"
        ) from error
    except openai.APIConnectionError as error:
        raise ServerFailure(
            f"No server answers at {client.base_url}: {_cause(error)}"
        ) from error
    except (AttributeError, IndexError, TypeError) as error:  # other data
        raise ValueError(
            f"What answers at {client.base_url} has no model or is no server of "
            "OpenAI's API."
        ) from error
    return model


async def _record(
    client: "openai.AsyncOpenAI",
    model: str,
    question: Question,
    page: Page,
    timeout: float,
) -> dict[str, Any]:
    record: dict[str, Any] = {"file": page.file, "page": page.number, "model": model}
    if page.error is not None:
        return record | {"error": page.error}
    start = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            record |= await _answer(client, model, question, page)
    except TimeoutError:
        record |= {"error": f"No answer came within {timeout:g} s."}
    except _PageFailure as failure:
        record |= {"error": str(failure)}
    return record | {"seconds": round(time.perf_counter() - start, 3)}


class _PageFailure(Exception):
    """The page has no answer, and the next one may have."""


async def _answer(
    client: "openai.AsyncOpenAI", model: str, question: Question, page: Page
) -> dict[str, Any]:
    import openai

    try:
        request = question.chat_request(page, model)
        completion = await client.chat.completions.create(**request)
    except openai.APIStatusError as error:
        message = f"The server answered {_status_message(error)}"
        if error.status_code in _NOT_THE_PAGE or (
            error.status_code in _OF_A_PROXY
            and not await _answers(client, model, question)
        ):
            raise ServerFailure(message) from error
        raise _PageFailure(message) from error
    except openai.APIConnectionError as error:
        message = f"The connection broke in all attempts: {_cause(error)}"
        if await _answers(client, model, question):
            raise _PageFailure(message) from error
        raise ServerFailure(message) from error
    if not completion.choices or completion.choices[0].message.content is None:
        raise _PageFailure("The server sent no answer.")
    choice, usage = completion.choices[0], completion.usage
    text, cut = choice.message.content, choice.finish_reason == "length"
    answer: dict[str, Any] = {"answer": text, "finish_reason": choice.finish_reason}
    if usage is not None:
        answer["tokens"] = {
            "prompt": usage.prompt_tokens,
            "answer": usage.completion_tokens,
        }
    hint = f"It was cut after {question.max_tokens} tokens."
    try:
        answer["answer"] = question.parse(text)
        if cut and question.schema is not None:  # 12 may be the start of 1200
            answer["error"] = f"The answer may not be complete. {hint}"
    except ValueError as error:
        answer["error"] = f"{error} {hint}" if cut else str(error)
    return answer


async def _answers(
    client: "openai.AsyncOpenAI", model: str, question: Question
) -> bool:
    """Whether the server answers a request without a page now."""
    import openai

    client = client.with_options(max_retries=0)
    try:
        await client.chat.completions.create(**question.trial_request(model))
    except (openai.APIConnectionError, openai.APIStatusError):
        return False
    return True


def _status_message(error: "openai.APIStatusError") -> str:
    body = error.body
    text = body.get("message") if isinstance(body, dict) else None
    return f"{error.status_code}: {text or error.message}"


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error) or type(error.__cause__).__name__
