# SPDX-License-Identifier: Apache-2.0
"""Messages of a chat, as vLLM gives them to the renderer."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def with_lists(messages: Iterable[Any]) -> list[Any]:
    """Messages whose parts can be read twice, by the checks and then by vLLM.

    Where a message is not of vLLM's type, pydantic tries OpenAI's, and the parts are
    then an iterator that validates them while they are read.

    Raises:
        pydantic.ValidationError: A part is none of OpenAI's.
    """
    return [
        {**message, "content": list(message["content"])}
        if isinstance(message, Mapping) and _are_parts(message.get("content"))
        else message
        for message in messages
    ]


def _are_parts(content: Any) -> bool:
    return isinstance(content, Iterable) and not isinstance(content, (str, Mapping))


def media_urls(messages: list[Any], modality: str) -> Iterator[str]:
    """URLs of a chat's images (``image``) or videos (``video``).

    Args:
        messages: See `with_lists`.
        modality: The kind of media.
    """
    key = f"{modality}_url"
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else []:
            media = part.get(key) if isinstance(part, Mapping) else None
            url = media.get("url") if isinstance(media, Mapping) else media
            if isinstance(url, str):
                yield url
