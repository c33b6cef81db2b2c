# SPDX-License-Identifier: Apache-2.0
"""Checks of the files of the server that a request names, before vLLM reads them."""

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from urllib3.exceptions import HTTPError
from urllib3.util import parse_url
from vllm.exceptions import VLLMValidationError


def media_urls(messages: list[Any], modality: str) -> Iterator[str]:
    """URLs of a chat's images (``image``) or videos (``video``)."""
    key = f"{modality}_url"
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else []:
            media = part.get(key) if isinstance(part, Mapping) else None
            url = media.get("url") if isinstance(media, Mapping) else media
            if isinstance(url, str):
                yield url


def check_file(url: str, modality: str, folder: str, most: int) -> None:
    """Refuse a file that vLLM would wait for, or read whole into memory.

    Args:
        url: Other schemes than ``file`` are not looked at.
        modality: ``image`` or ``video``.
        folder: ``--allowed-local-media-path``; empty if there is none.
        most: Bytes of a file; 0 for no limit.

    Raises:
        VLLMValidationError: It is a pipe or a device, or has more bytes.
    """
    if not folder or url[:5].lower() != "file:":  # data URLs are long
        return
    try:
        parts = parse_url(url)  # as vLLM reads it
        file = Path(url2pathname((parts.netloc or "") + (parts.path or ""))).resolve()
        if Path(folder).resolve() not in file.parents:
            return
        found = file.stat()
    except (OSError, RuntimeError, ValueError, HTTPError):
        return  # vLLM refuses it, too
    problem = ""
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        problem = "it is not a regular file"
    elif 0 < most < found.st_size:
        problem = f"it has {found.st_size} bytes; at most {most} are allowed"
    if problem:
        raise VLLMValidationError(
            f"The {modality} cannot be read: {problem}.", parameter=f"{modality}_url"
        )
