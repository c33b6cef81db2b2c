# SPDX-License-Identifier: Apache-2.0
"""The renderer: refuses wrong requests before they reach the engine.

``<image>`` is the placeholder of an image, and any user can type it. A typed one
could take the place of an image in another message. A prompt must therefore have
exactly one for each image. An image that cannot be read is the client's error, but
vLLM's loader reports some of them as internal errors of the server.
"""

import asyncio
import contextlib
import errno
import re
import textwrap
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import aiohttp
import requests
from PIL import Image
from vllm.config import VllmConfig
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.inputs import MultiModalInput, TokensInput, TokensPrompt
from vllm.logger import init_logger
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams

from ..config.nemotron_vl import ImageConfig
from ..multimodal.nemotron_vl import check_adapters
from ..multimodal.nemotron_vl_embeddings import (
    check_engine,
    check_names,
    has_embeddings,
    with_plain_embeddings,
)
from ..multimodal.nemotron_vl_loading import check_and_load_images, share_threads
from ..transformers_utils.configs.nemotron_vl_checks import check_image_tokens
from ..transformers_utils.processors.nemotron_vl_threads import set_image_threads
from .nemotron_vl_messages import with_lists
from .nemotron_vl_uuids import with_keys

logger = init_logger("vllm.renderers.nemotron_vl")

PLACEHOLDER = "<image>"

# Types of errors whose messages help the client. They may quote the file, so their
# length is limited.
_LONGEST = 300
_HELPFUL = (
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    Image.DecompressionBombError,
)
# Scheme and host are groups; a user with a password, the path and the query are not.
_URL = re.compile(r"(https?://)(?:[^/?#\s'\"]*@)?([^/?#\s'\"]*)[^\s'\"]*")
_NETWORK = (aiohttp.ClientError, requests.RequestException, TimeoutError)
# The server lacks memory, open files or threads.
_SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
# Words of Python (the first at shutdown), PyTorch and Pillow
_SHORTAGE = re.compile(
    "cannot schedule new futures|can't start new thread|"
    ".*DefaultCPUAllocator: can't allocate memory|out of memory"
)


class NemotronVLRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face tokenizers, with these checks."""

    # Errors in the loading of media that are not the client's.
    servers_errors: tuple[type[Exception], ...] = (MemoryError,)

    def __init__(self, config: VllmConfig, tokenizer: Any) -> None:
        check_engine(config)
        if tokenizer is not None:
            vocab_size = config.model_config.get_vocab_size()
            check_image_tokens(tokenizer.get_vocab(), vocab_size)
        settings = ImageConfig.from_vllm_config(config)
        self._trusted_uuids = settings.trusted_uuids
        # Both before vLLM processes its first image, to warm up.
        servers = config.parallel_config._api_process_count
        set_image_threads(settings.image_threads, servers)
        check_and_load_images(settings.more_image_formats)
        super().__init__(config, tokenizer)

    async def render_chat_async(self, *args: Any, **options: Any):
        share_threads()
        return await super().render_chat_async(*args, **options)

    def render_messages(self, messages: list[Any], params: ChatParams):
        messages = with_lists(messages)
        if self._takes_embeddings(messages):
            messages = with_plain_embeddings(messages)
        with _media_errors_are_the_clients(self.servers_errors):
            return super().render_messages(messages, params)

    async def render_messages_async(self, messages: list[Any], params: ChatParams):
        messages = with_lists(messages)
        if self._takes_embeddings(messages):
            messages = await asyncio.to_thread(with_plain_embeddings, messages)
        with _media_errors_are_the_clients(self.servers_errors):
            return await super().render_messages_async(messages, params)

    def _takes_embeddings(self, messages: list[Any]) -> bool:
        images = self.model_config.multimodal_config
        return (  # else vLLM refuses them by the option's name
            images is not None and images.enable_mm_embeds and has_embeddings(messages)
        )

    def _process_tokens(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        self._check_placeholders(prompt)
        prompt = with_keys(prompt, trusted=self._trusted_uuids)
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        self._check_placeholders(prompt)
        prompt = with_keys(prompt, trusted=self._trusted_uuids)
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def _check_placeholders(self, prompt: TokensPrompt) -> None:
        check_names(prompt, self.config)
        check_adapters(prompt, self.config)
        if self.tokenizer is None:  # --skip-tokenizer-init
            return
        placeholder = self.tokenizer.get_vocab().get(PLACEHOLDER, -1)
        written = prompt["prompt_token_ids"].count(placeholder)
        self._compare(prompt, "image", PLACEHOLDER, written)

    def _compare(
        self, prompt: TokensPrompt, modality: str, placeholder: str, written: int
    ) -> None:
        """Refuse a prompt that has not one placeholder for each image or video."""
        given = 0
        if self.mm_processor is not None:  # else --limit-mm-per-prompt image=0
            data = (prompt.get("multi_modal_data") or {}).get(modality)
            given = self.mm_processor.info.data_parser.count_items(modality, data)
        if written == given:
            return
        raise VLLMValidationError(
            f"The prompt has {written} {placeholder} placeholder(s) for {given} "
            f"{modality}(s); it must have one for each. In a chat request the server "
            f"writes them, so the text must not contain {placeholder}; in a plain "
            f"prompt, write {placeholder} where each {modality} belongs.",
            parameter="prompt",
        )


@contextlib.contextmanager
def _media_errors_are_the_clients(
    servers_errors: tuple[type[Exception], ...],
) -> Iterator[None]:
    """Turn errors in the loading of media into errors with status 400."""
    try:
        yield
    except VLLMError:
        raise
    except Exception as error:
        media = _loaded_media(error.__traceback__)
        if media is None or _is_the_servers(error, servers_errors):
            raise  # the client may send it again later
        said = _without_urls(repr(error))
        logger.info("The %s of a request could not be loaded: %s", media, said)
        if isinstance(error, _NETWORK):
            # Details would reveal the server's network to the client.
            text = f"The {media} could not be fetched from its URL."
        else:
            reason = "the data are damaged"
            if isinstance(error, _HELPFUL):
                reason = getattr(error, "strerror", None) or str(error)
            reason = textwrap.shorten(reason, _LONGEST)
            text = f"The {media} cannot be read: {reason}"
        raise VLLMValidationError(text, parameter=f"{media}_url") from error


def _is_the_servers(
    error: BaseException | None, servers_errors: tuple[type[Exception], ...]
) -> bool:
    while error is not None:
        if (
            isinstance(error, servers_errors)
            or getattr(error, "errno", None) in _SHORTAGES
            # Other types may quote what the client or its host wrote.
            or (type(error) in (RuntimeError, OSError) and _SHORTAGE.match(str(error)))
        ):
            return True
        error = error.__cause__ or error.__context__  # vLLM's loader wraps some
    return False


def _without_urls(text: str) -> str:
    """Keep only the host of each URL: paths and queries may hold secrets."""
    return textwrap.shorten(_URL.sub(r"\1\2/...", text), _LONGEST)


def _loaded_media(traceback: TracebackType | None) -> str | None:
    """What vLLM was loading, ``image`` or ``video``; ``None`` if it was not loading."""
    media = None
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.startswith("vllm.multimodal.media."):
            place = module + traceback.tb_frame.f_code.co_name  # say, fetch_video_async
            media = "video" if "video" in place else media or "image"
        traceback = traceback.tb_next
    return media
