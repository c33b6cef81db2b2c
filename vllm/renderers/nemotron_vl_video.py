# SPDX-License-Identifier: Apache-2.0
"""The renderer of ``Llama_Nemotron_Nano_VL_Video``: checks of requests with videos.

``<img></img>`` is the placeholder of a video, and any user can type it, too.
"""

import asyncio
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput, TokensInput, TokensPrompt
from vllm.renderers.params import ChatParams

from ..config.nemotron_vl_names import IMAGE_END, IMAGE_START
from ..config.nemotron_vl_video import (
    FRAMES_KEY,
    VIDEO_PLACEHOLDER,
    num_frames_problem,
)
from ..multimodal.nemotron_vl_decoding import DecoderUnavailable
from .nemotron_vl import NemotronVLRenderer
from .nemotron_vl_messages import media_urls, with_lists

# vLLM reads this kind of data URL as a list of images, without our loader and its
# limits.
_LIST_OF_IMAGES = re.compile(r"\s*data:video/jpeg[;,]", re.IGNORECASE)


class NemotronVLVideoRenderer(NemotronVLRenderer):
    """The renderer of the image architecture, with checks of videos."""

    servers_errors = (*NemotronVLRenderer.servers_errors, DecoderUnavailable)

    def render_messages(self, messages: list[Any], params: ChatParams):
        messages = with_lists(messages)
        self._check_videos(messages, params)
        return super().render_messages(messages, params)

    async def render_messages_async(self, messages: list[Any], params: ChatParams):
        messages = with_lists(messages)
        self._check_videos(messages, params)
        left = threading.Event()
        try:
            return await super().render_messages_async(
                messages, self._with_event(params, left)
            )
        finally:  # vLLM cancels this call when the client leaves
            left.set()

    def _with_event(self, params: ChatParams, left: threading.Event) -> ChatParams:
        """Settings of a request with the loader's `left`; only the loader sees it."""
        engine = self.model_config.get_multimodal_config().media_io_kwargs
        settings = params.media_io_kwargs or engine
        videos = {**(settings.get("video") or {}), "left": left}
        return replace(params, media_io_kwargs={**settings, "video": videos})

    def _check_videos(self, messages: list[Any], params: ChatParams) -> None:
        self._check_settings((params.media_io_kwargs or {}).get("video") or {})
        for url in media_urls(messages, "video"):
            if _LIST_OF_IMAGES.match(url):
                raise VLLMValidationError(
                    "A list of JPEG images (data:video/jpeg) is not read as a video. "
                    "Send a file, or each frame as an image.",
                    parameter="video_url",
                )

    def _check_settings(self, given: Any) -> None:
        """Compare a request's ``media_io_kwargs["video"]`` with the engine's."""
        engine = self.model_config.get_multimodal_config().media_io_kwargs["video"]
        if not isinstance(given, Mapping):
            problem = f"media_io_kwargs: video must be an object, but is {given!r}."
        elif changed := [
            name
            for name, value in given.items()
            if name != FRAMES_KEY and engine.get(name) != value
        ]:
            problem = (
                f"media_io_kwargs: the only setting of videos is {FRAMES_KEY}, "
                f"not {changed}."
            )
        else:
            found = num_frames_problem(given.get(FRAMES_KEY, 1), engine[FRAMES_KEY])
            if found is None:
                return
            problem = found
        raise VLLMValidationError(problem, parameter="media_io_kwargs")

    def _process_tokens(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        if prompt.get("media_io_kwargs"):
            self._read_videos(prompt)
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        if prompt.get("media_io_kwargs"):
            await asyncio.to_thread(self._read_videos, prompt)  # may decode a file
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def _read_videos(self, prompt: TokensPrompt) -> None:
        """Take the frames that the request asks for; vLLM does so for URLs only."""
        settings = (prompt.get("media_io_kwargs") or {}).get("video")
        data = prompt.get("multi_modal_data") or {}
        if settings and data.get("video") is not None and self.mm_processor:
            self._check_settings(settings)
            parser = self.mm_processor.info.data_parser
            videos = parser.read_videos(data["video"], settings.get(FRAMES_KEY, 0))
            prompt["multi_modal_data"] = {**data, "video": videos}

    def _check_placeholders(self, prompt: TokensPrompt) -> None:
        super()._check_placeholders(prompt)
        if self.tokenizer is None:  # --skip-tokenizer-init
            return
        vocabulary = self.tokenizer.get_vocab()
        pair = vocabulary.get(IMAGE_START, -1), vocabulary.get(IMAGE_END, -1)
        written = sum(found == pair for found in pairwise(prompt["prompt_token_ids"]))
        self._compare(prompt, "video", VIDEO_PLACEHOLDER, written)
