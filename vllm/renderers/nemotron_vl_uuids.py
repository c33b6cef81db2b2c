# SPDX-License-Identifier: Apache-2.0
"""What the ``uuid`` of an image or a video means: a name among one client's own.

vLLM takes it for the key of its caches, as it stands. Whoever knows the key of an
image, which may be the hash of its content, could then read the image, or put another
one in its place. Here the key is a message authentication code of the name and of the
request's ``cache_salt``, which tells clients apart. Without a salt there are no names.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.multimodal.parse import parse_mm_uuids

from ..multimodal.nemotron_vl_secret import launch_secret


def with_keys(prompt: TokensPrompt, *, trusted: bool) -> TokensPrompt:
    """Replace the uuids of a prompt by keys for vLLM's caches.

    Args:
        prompt: With or without uuids; it is not changed.
        trusted: Whether all uuids are keys as they stand.

    Raises:
        VLLMValidationError: A uuid is no text, or an image or a video has a uuid and
            no data, and the request has no salt.
    """
    uuids = parse_mm_uuids(prompt.get("multi_modal_uuids"))
    for names in uuids.values():
        for name in names:
            if name is not None:
                _check_text(name)
    if trusted or not uuids:
        return prompt
    salt = prompt.get("cache_salt")
    if not salt:
        _check_data(prompt.get("multi_modal_data") or {}, uuids)
    keys = {
        modality: [_key(modality, name, salt) for name in names]
        for modality, names in uuids.items()
    }
    return cast(TokensPrompt, {**prompt, "multi_modal_uuids": keys})


def _check_text(name: Any) -> None:
    try:
        name.encode()
    except (AttributeError, UnicodeEncodeError):
        raise VLLMValidationError(
            "A uuid must be a text, without halves of surrogate pairs.",
            parameter="uuid",
        ) from None


def _check_data(
    data: Mapping[str, Any], uuids: Mapping[str, Sequence[str | None]]
) -> None:
    for modality, names in uuids.items():
        items = data.get(modality)
        if not isinstance(items, (list, tuple)):
            items = [items]
        if any(names) and any(item is None for item in items):
            raise VLLMValidationError(
                f"The {modality} has a uuid and no data. Such a request is answered "
                "only with the cache_salt with which the data were sent.",
                parameter="uuid",
            )


def _key(modality: str, name: str | None, salt: str | None) -> str | None:
    """The key for the caches; without a salt none, so that vLLM hashes the content."""
    if name is None or not salt:
        return None
    secret = launch_secret("uuids of images and videos")
    message = json.dumps([modality, salt, name]).encode()
    return hmac.digest(secret, message, "sha256").hex()
