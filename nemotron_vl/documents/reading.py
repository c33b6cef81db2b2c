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

from .pages import Page
from .requests import Question

if TYPE_CHECKING:
    import openai

# Of the client, about two and a half minutes: a server can start again meanwhile.
RETRIES = 20
_RETRIES_AT_START = 3

# These say nothing about the page: wrong key or name, too many requests.
_NOT_THE_PAGE = {401, 403, 404, 429}
# A proxy found no server, or waited too long for it. The page may be the reason.
_OF_A_PROXY = {502, 503, 504}
_MOST_SHOWN = 1000  # characters of a message


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
        client: Client of the server. Its ``max_retries`` holds.
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
    client: "openai.AsyncOpenAI",
    model: str | None,
    question: Question,
    timeout: float,
) -> str:
    """The name of the server's model, after a request of one token without a page.

    Args:
        client: Client of the server.
        model: Its name; by default the server's first.
        question: Whose schema the server must take.
        timeout: Seconds for all of it, with all retries.

    Raises:
        ServerFailure: No server answers.
        ValueError: The server refuses the model, the key or the schema.
    """
    import openai

    from .client import Completion, MalformedAnswer, Models, parsed

    impatient = client.with_options(max_retries=_RETRIES_AT_START)
    try:
        async with asyncio.timeout(timeout):
            if model is None:
                models = await impatient.models.with_raw_response.list()
                model = parsed(Models, models).data[0].id
            trial = question.trial_request(model)
            try:
                answer = await _raw(impatient, trial)
            except openai.APIStatusError as error:
                if error.status_code != 429 and error.status_code < 500:
                    raise
                answer = await _raw(client, trial)  # it is there, but busy
            parsed(Completion, answer)
    except TimeoutError as error:
        raise ServerFailure(
            f"{client.base_url} did not answer within {timeout:g} s."
        ) from error
    except openai.APIStatusError as error:
        raise ValueError(
            f"The server refuses requests: {_status_message(error)}"
        ) from error
    except openai.APIConnectionError as error:
        raise ServerFailure(
            f"No server answers at {client.base_url}: {_cause(error)}"
        ) from error
    except MalformedAnswer as error:
        raise ValueError(
            f"What answers at {client.base_url} has no model or is no server of "
            f"OpenAI's API. {error}"
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

    from .client import Completion, MalformedAnswer, moved_to, parsed

    try:
        answer = await _raw(client, question.chat_request(page, model))
        completion = parsed(Completion, answer)
    except MalformedAnswer as error:
        raise _PageFailure(str(error)) from error
    except openai.APIStatusError as error:
        message = f"The server answered {_status_message(error)}"
        if error.status_code in _NOT_THE_PAGE or (
            (error.status_code in _OF_A_PROXY or moved_to(error))
            and not await _answers(client, model, question)
        ):
            raise ServerFailure(message) from error
        raise _PageFailure(message) from error
    except openai.APIConnectionError as error:
        message = f"The connection broke in all attempts: {_cause(error)}"
        if await _answers(client, model, question):
            raise _PageFailure(message) from error
        raise ServerFailure(message) from error
    choice = completion.choices[0] if completion.choices else None
    if choice is None or choice.message.content is None:
        raise _PageFailure("The server sent no answer.")
    text, usage = choice.message.content, completion.usage
    cut = choice.finish_reason == "length"
    record: dict[str, Any] = {"answer": text, "finish_reason": choice.finish_reason}
    if usage is not None:
        record["tokens"] = {
            "prompt": usage.prompt_tokens,
            "answer": usage.completion_tokens,
        }
    hint = f"It was cut after {question.max_tokens} tokens."
    try:
        record["answer"] = question.parse(text)
        if cut and question.schema is not None:  # 12 may be the start of 1200
            record["error"] = f"The answer may not be complete. {hint}"
    except ValueError as error:
        message = _short(str(error))
        record["error"] = f"{message} {hint}" if cut else message
    return record


async def _raw(client: "openai.AsyncOpenAI", request: dict[str, Any]) -> Any:
    """The answer to a chat request, for `client.parsed`."""
    return await client.chat.completions.with_raw_response.create(**request)


async def _answers(
    client: "openai.AsyncOpenAI", model: str, question: Question
) -> bool:
    """Whether the server answers a request without a page now."""
    import openai

    client = client.with_options(max_retries=0)
    try:
        await _raw(client, question.trial_request(model))
    except (openai.APIConnectionError, openai.APIStatusError):
        return False
    return True


def _status_message(error: "openai.APIStatusError") -> str:
    from .client import moved_to

    if place := moved_to(error):
        return (
            f"{error.status_code}: it redirects to {_short(place)}, give that as --url"
        )
    body = error.body
    text = body.get("message") if isinstance(body, dict) else None
    return f"{error.status_code}: {_short(str(text or error.message))}"


def _short(text: str) -> str:
    """The beginning of a message that may hold all of an answer."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error) or type(error.__cause__).__name__
