# SPDX-License-Identifier: Apache-2.0
"""The connection to a server that may be hostile or broken.

A page goes to no other host than the given one, and no answer takes more than
`MOST_BYTES`.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import httpx
import openai
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

# Of an answer. That of the longest context is 2 MB if each of its 16,384 tokens is the
# longest of Llama 3, 128 characters.
MOST_BYTES = 1 << 22
# The only headers that OpenAI's client and `moved_to` see. The type of the content, for
# example, may name a codec that decompresses.
_HEADERS = ("location", "retry-after", "retry-after-ms")
_FLAW = "flaw"


# The key of the server, whatever its URL.
KEY = "NEMOTRON_VL_API_KEY"
_OPENAI_KEY = "OPENAI_API_KEY"
KEYS: tuple[str, ...] = (KEY, _OPENAI_KEY)
RERANK_KEY = "NEMOTRON_VL_RERANK_API_KEY"
ANSWER_KEY = "NEMOTRON_VL_ANSWER_API_KEY"

# Statuses after which OpenAI's client asks again.
_TRIED_AGAIN = {408, 409, 429}
# Its pauses grow to so many seconds. A random part of up to a quarter is left out.
_PAUSES = (0.5, 1, 2, 4)
_LONGEST_PAUSE = 8
_SHORTENED = 0.875


def connect(
    url: str,
    timeout: float = 1800,
    wait: float = 120,
    tell: Callable[[str], object] = lambda text: None,
    keys: Sequence[str] = KEYS,
) -> openai.AsyncOpenAI:
    """A client of a server.

    ``OPENAI_API_KEY`` only goes to this machine or through TLS.

    Args:
        url: Of the server, with or without ``/v1``.
        timeout: Seconds for an answer.
        wait: Seconds in which the server may be away or busy.
        tell: Called with a sentence when that begins and when it ends.
        keys: Variables of the environment; the first that is set holds the key.
    """
    # No proxy reaches a server of this machine.
    local = is_local(url)
    name = next((name for name in keys if os.environ.get(name)), None)
    if name == _OPENAI_KEY and not local and urlsplit(url).scheme != "https":
        tell(f"{name} is not sent without TLS; set {keys[0]} to send a key.")
        name = None
    client = openai.AsyncOpenAI(
        http_client=BoundedClient(tell, wait, trust_env=not local),
        base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1",
        api_key=os.environ[name] if name else "none",
        max_retries=retries(wait),
        timeout=openai.Timeout(timeout, connect=10),
    )
    # OpenAI's variables, which may hold secrets of its service.
    client.organization = client.project = None
    client._custom_headers = {}
    return client


def retries(wait: float) -> int:
    """How often OpenAI's client tries again in so many seconds."""
    waited, count = 0.0, 0
    for pause in itertools.chain(_PAUSES, itertools.repeat(_LONGEST_PAUSE)):
        if waited >= wait:
            break
        waited, count = waited + pause * _SHORTENED, count + 1
    return count


def keys_of(url: str, key: str, first: str | None) -> tuple[str, ...]:
    """The variables with the key of a further server.

    Args:
        url: Of that server.
        key: Variable of its own.
        first: URL of the server that `KEYS` are of.
    """
    same = first is not None and _origin(url) == _origin(first)
    return (key, *KEYS) if same else (key,)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    ports = {"http": 80, "https": 443}
    return parts.scheme, parts.hostname, parts.port or ports.get(parts.scheme)


def is_local(url: str) -> bool:
    """Whether a server is on this machine."""
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client that follows no redirects and reads only so many bytes.

    It asks for answers that are not compressed, and does not read others.

    Args:
        tell: Called with a sentence when the server stops and starts to answer.
        wait: Seconds that are waited for it, for that sentence.
        options: Of httpx.
    """

    def __init__(
        self, tell: Callable[[str], object], wait: float, **options: Any
    ) -> None:
        super().__init__(**options)
        self._tell, self._wait = tell, wait
        self._reached = self._away = False

    def _note(self, trouble: str | None) -> None:
        """Say once that the server is away, or that it is back."""
        if trouble and not self._away:
            self._tell(f"{trouble} Waiting for up to {self._wait:g} s (--wait) ...")
        elif self._away and not trouble:
            self._tell("The server answers again.")
        self._away = bool(trouble)

    async def send(self, request: Any, **options: Any) -> Any:
        request.headers["accept-encoding"] = "identity"
        options |= {"stream": True, "follow_redirects": False}
        try:
            answer = await super().send(request, **options)
        except httpx.TransportError as error:
            if self._reached:  # otherwise the caller waits for a few seconds only
                cause = str(error) or type(error).__name__
                self._note(f"The server does not answer ({cause}).")
            raise
        self._reached = True
        status = answer.status_code
        again = status in _TRIED_AGAIN or status >= 500
        self._note(f"The server answers {status}." if again else None)
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
    max_model_len: _Tokens | None = None  # of vLLM


class Models(BaseModel):
    """What is read of a list of models."""

    data: Annotated[list[Model], Field(min_length=1)]


class Embedding(BaseModel):
    embedding: Annotated[list[FiniteFloat], Field(min_length=1)]


class Embeddings(BaseModel):
    """What is read of an answer about one page or question to embed."""

    data: Annotated[list[Embedding], Field(min_length=1, max_length=1)]


class Score(BaseModel):
    relevance_score: FiniteFloat


class Scores(BaseModel):
    """What is read of an answer about one page to rank."""

    results: Annotated[list[Score], Field(min_length=1, max_length=1)]


class MalformedAnswer(ValueError):
    """The server answered something else than OpenAI's API does."""


_Answer = TypeVar("_Answer", bound=BaseModel)


def parsed(kind: type[_Answer], answer: Any) -> _Answer:
    """The content of an answer.

    Args:
        kind: What is read.
        answer: HTTP response of a `BoundedClient`.

    Raises:
        MalformedAnswer: It is too large, compressed, or no such content.
    """
    if flaw := answer.extensions.get(_FLAW):
        raise MalformedAnswer(f"The server's answer {flaw}.")
    try:
        return kind.model_validate_json(answer.content)
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
