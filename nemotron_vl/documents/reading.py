# SPDX-License-Identifier: Apache-2.0
"""Pages are sent to a server, a few at a time, and its answers become records.

The server speaks OpenAI's chat API, such as ``vllm serve``. OpenAI's client tries
again, after 0.5 to 8 s or as long as ``Retry-After`` asks, when a connection breaks
or the status is 408, 409, 429 or from 500.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .answers import shortened
from .pages import Page
from .requests import Question
from .served import Asked, Served

if TYPE_CHECKING:
    import openai

_RETRIES_AT_START = 3

# These say nothing about the page: wrong key or name, too many requests.
_NOT_THE_PAGE = {401, 403, 404, 429}
# A proxy found no server, or waited too long for it. The page may be the reason.
_OF_A_PROXY = {502, 503, 504}


class ServerFailure(RuntimeError):
    """The server answers no page. Pages without a record can be asked again."""


_Asked = TypeVar("_Asked", bound=Asked)


async def read_answers(
    client: "openai.AsyncOpenAI",
    asked: Asked,
    pages: Iterator[Sequence[Page]],
    at_once: int,
    timeout: float,
    ended: asyncio.Future | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """Ask about all pages.

    Args:
        client: Client of the server. Its ``max_retries`` holds.
        asked: The model, and what is asked.
        pages: What each request is about: a page, or several of one document. Taken in
            another thread, one by one, as requests end.
        at_once: Most requests at a time, which are also those in memory.
        timeout: Seconds for an answer, with all retries.
        ended: Done when the server has ended; has the exception to raise.

    Yields:
        A record for each request, as `Records.append` takes it, in the order of the
        answers. It has either ``error`` or ``answer``, ``finish_reason``, ``tokens``
        of the prompt and of the answer, and ``seconds`` from the request to the
        answer, with all retries. ``cut`` says that the answer is not whole,
        ``text_layer`` how far it differs from the text of the PDF.

    Raises:
        ServerFailure: The server cannot be reached, is overloaded in spite of all
            retries, or refuses the key or the model.
    """
    running: set[asyncio.Future] = set()
    drawing: asyncio.Task | None = None
    more = True
    watched = {ended} if ended else set()
    try:
        while True:
            if more and drawing is None and len(running) < at_once:
                drawing = asyncio.create_task(asyncio.to_thread(next, pages, None))
                running.add(drawing)
            if not running:
                return
            finished, running = await asyncio.wait(
                running | watched, return_when=asyncio.FIRST_COMPLETED
            )
            running -= watched
            if drawing in finished:
                finished.remove(drawing)
                group, drawing = drawing.result(), None
                if group is None:
                    more = False
                else:
                    work = _record(client, asked, group, timeout)
                    running.add(asyncio.create_task(work))
                    del group, work
            # Answers first: a failure ends the run.
            for task in sorted(finished, key=lambda task: task.exception() is not None):
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def find_model(
    client: "openai.AsyncOpenAI",
    question: Question,
    model: str | None = None,
    timeout: float = 1800,
) -> Served:
    """The server's model, after a request of one token without a page.

    Args:
        client: Client of the server.
        question: What is asked. A server that refuses its schema as a structural tag
            gets it without.
        model: Its name; by default the server's first.
        timeout: Seconds for all of it, with all retries.

    Raises:
        ServerFailure: No server answers.
        ValueError: The server refuses the model, the key or the question, or its
            context is smaller than the answers may be.
    """
    try:
        make = partial(Served, question=question)
        served, _ = await introduced(client, make, model, timeout)
    except Refusal as refusal:
        if refusal.status not in (400, 422) or not question.structural:
            raise
        make = partial(Served, question=question._replace(structural=False))
        served, _ = await introduced(client, make, model, timeout)
    context = served.context
    if context is not None and question.max_tokens >= context:
        raise ValueError(
            f"Answers of {question.max_tokens} tokens do not fit the server's context "
            f"of {context} tokens, pages included. Lower --max-tokens."
        )
    return served


class Refusal(ValueError):
    """The server refuses all requests.

    Args:
        status: Of its answer.
        message: What it says.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"The server refuses requests: {message}")
        self.status = status


async def introduced(
    client: "openai.AsyncOpenAI",
    make: Callable[[str, int | None], _Asked],
    model: str | None,
    timeout: float,
) -> tuple[_Asked, dict[str, Any]]:
    """A model of a server, and what it answers to a request without a page.

    Args:
        client: Client of the server.
        make: Takes the model's name and context.
        model: Its name; by default the server's first.
        timeout: Seconds for all of it, with all retries.

    Raises:
        ServerFailure: No server answers.
        ValueError: The server refuses the request (`Refusal`), or answers something
            else.
    """
    import openai

    from .client import MalformedAnswer, Models, parsed

    impatient = client.with_options(max_retries=_RETRIES_AT_START)
    try:
        async with asyncio.timeout(timeout):
            listed = []
            try:
                models = await impatient.models.with_raw_response.list()
                listed = parsed(Models, models.http_response).data
            except (openai.APIStatusError, MalformedAnswer):
                if model is None:
                    raise
            name = model or listed[0].id
            context = next((m.max_model_len for m in listed if m.id == name), None)
            asked = make(name, context)
            try:
                answer = await _raw(impatient, asked, asked.trial())
            except openai.APIStatusError as error:
                if error.status_code != 429 and error.status_code < 500:
                    raise
                answer = await _raw(client, asked, asked.trial())  # it is busy
            return asked, asked.trial_record(answer)
    except TimeoutError as error:
        raise ServerFailure(
            f"{client.base_url} did not answer within {timeout:g} s."
        ) from error
    except openai.APIStatusError as error:
        raise Refusal(error.status_code, _status_message(error)) from error
    except openai.APIConnectionError as error:
        raise ServerFailure(
            f"No server answers at {client.base_url}: {_cause(error)}"
        ) from error
    except MalformedAnswer as error:
        raise ValueError(
            f"What answers at {client.base_url} has no model or is no server of "
            f"OpenAI's API. {error}"
        ) from error


async def _record(
    client: "openai.AsyncOpenAI",
    asked: Asked,
    pages: Sequence[Page],
    timeout: float,
) -> dict[str, Any]:
    first = pages[0]
    record: dict[str, Any] = {"file": first.file, "page": first.number}
    if len(pages) > 1:
        record["pages"] = [page.number for page in pages]
    if first.error is not None:
        return record | {"error": first.error}
    if first.blank:
        return record | {"answer": asked.nothing, "blank": True}
    start = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            record |= await _answer(client, asked, pages)
    except TimeoutError:
        message = f"No answer came within {timeout:g} s."
        if not await _answers(client, asked):
            raise ServerFailure(message) from None
        record |= {"error": message}
    except _PageFailure as failure:
        record |= {"error": str(failure)}
    return record | {"seconds": round(time.perf_counter() - start, 3)}


class _PageFailure(Exception):
    """The page has no answer, and the next one may have."""


async def _answer(
    client: "openai.AsyncOpenAI", asked: Asked, pages: Sequence[Page]
) -> dict[str, Any]:
    import openai

    from .client import MalformedAnswer, moved_to

    try:
        return asked.record(await _raw(client, asked, asked.request(pages)), pages)
    except MalformedAnswer as error:
        raise _PageFailure(str(error)) from error
    except openai.APIStatusError as error:
        message = f"The server answered {_status_message(error)}"
        if error.status_code in _NOT_THE_PAGE or (
            (error.status_code in _OF_A_PROXY or moved_to(error))
            and not await _answers(client, asked)
        ):
            raise ServerFailure(message) from error
        raise _PageFailure(message) from error
    except openai.APIConnectionError as error:
        message = f"The connection broke in all attempts: {_cause(error)}"
        if await _answers(client, asked):
            raise _PageFailure(message) from error
        raise ServerFailure(message) from error


async def _raw(
    client: "openai.AsyncOpenAI", asked: Asked, request: dict[str, Any]
) -> Any:
    """The answer to a request, for `client.parsed`."""
    import httpx

    return await client.post(asked.path, body=request, cast_to=httpx.Response)


async def _answers(client: "openai.AsyncOpenAI", asked: Asked) -> bool:
    """Whether the server answers a request without a page now."""
    import openai

    client = client.with_options(max_retries=0)
    try:
        await _raw(client, asked, asked.trial())
    except (openai.APIConnectionError, openai.APIStatusError):
        return False
    return True


def _status_message(error: "openai.APIStatusError") -> str:
    from .client import moved_to

    if place := moved_to(error):
        place = shortened(place)
        return f"{error.status_code}: it redirects to {place}, give that as --url"
    body = error.body
    text = body.get("message") if isinstance(body, dict) else None
    return f"{error.status_code}: {shortened(str(text or error.message))}"


def _cause(error: Exception) -> str:
    return str(error.__cause__ or error) or type(error.__cause__).__name__
