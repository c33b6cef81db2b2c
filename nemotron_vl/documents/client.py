# SPDX-License-Identifier: Apache-2.0
"""The connection to a server that may be hostile or broken.

A page goes to no other host than the given one, and no answer takes more than
`MOST_BYTES`.
"""

import contextlib
from typing import Annotated, Any, TypeVar

import openai
from pydantic import BaseModel, Field, ValidationError

# Of an answer. That of the longest context is 2 MB if each of its 16,384 tokens is the
# longest of Llama 3, 128 characters.
MOST_BYTES = 1 << 22
# The only headers that OpenAI's client and `moved_to` see. The type of the content, for
# example, may name a codec that decompresses.
_HEADERS = ("location", "retry-after", "retry-after-ms")
_FLAW = "flaw"


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that follows no redirects and reads only so many bytes.

    It asks for answers that are not compressed, and does not read others.
    """

    async def send(self, request: Any, **options: Any) -> Any:
        request.headers["accept-encoding"] = "identity"
        options |= {"stream": True, "follow_redirects": False}
        answer = await super().send(request, **options)
        content, flaw = bytearray(), ""
        try:
            if answer.headers.get("content-encoding", "identity") != "identity":
                flaw = "is compressed"
            else:
                async with contextlib.aclosing(answer.aiter_raw()) as parts:
                    async for part in parts:
                        content += part
                        if len(content) > MOST_BYTES:
                            flaw = f"has more than {MOST_BYTES >> 20} MiB"
                            content.clear()
                            break
        finally:
            await answer.aclose()
        return type(answer)(
            answer.status_code,
            headers={n: answer.headers[n] for n in _HEADERS if n in answer.headers},
            content=bytes(content),
            request=request,
            extensions={_FLAW: flaw},
        )


class Message(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    message: Message
    finish_reason: Annotated[str, Field(max_length=64)] | None = None


_Tokens = Annotated[int, Field(ge=0, le=1 << 53)]


class Usage(BaseModel):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens


class Completion(BaseModel):
    """What is read of an answer to a chat request."""

    choices: list[Choice] | None = None
    usage: Usage | None = None


class Model(BaseModel):
    id: Annotated[str, Field(min_length=1, max_length=4096)]


class Models(BaseModel):
    """What is read of a list of models."""

    data: Annotated[list[Model], Field(min_length=1)]


class MalformedAnswer(ValueError):
    """The server answered something else than OpenAI's API does."""


_Answer = TypeVar("_Answer", bound=BaseModel)


def parsed(kind: type[_Answer], answer: Any) -> _Answer:
    """The content of an answer.

    Args:
        kind: `Completion` or `Models`.
        answer: Answer of a method below ``with_raw_response`` of OpenAI's client.

    Raises:
        MalformedAnswer: It is too large, compressed, or no such content.
    """
    if flaw := answer.http_response.extensions.get(_FLAW):
        raise MalformedAnswer(f"The server's answer {flaw}.")
    try:
        return kind.model_validate_json(answer.http_response.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        message = f"The server's answer cannot be read: {place}: {first['msg']}"
        raise MalformedAnswer(message) from error


def moved_to(error: openai.APIStatusError) -> str | None:
    """Where an answer redirects to."""
    return (
        error.response.headers.get("location") if error.response.is_redirect else None
    )
