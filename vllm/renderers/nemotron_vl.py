# SPDX-License-Identifier: Apache-2.0
"""The renderer: refuses wrong requests before they reach the engine.

``<image>`` is the placeholder of an image, and any user can type it. A typed one
could take the place of an image in another message. A prompt must therefore have
exactly one for each image.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from PIL import Image
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput, TokensInput, TokensPrompt
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import ChatParams, TokenizeParams

from ..config.nemotron_vl import ImageConfig
from ..config.nemotron_vl_names import IMAGE_TOKEN
from ..multimodal.nemotron_vl_embeddings import has_embeddings, with_plain_embeddings
from ..multimodal.nemotron_vl_loading import check_and_load_images, share_threads
from ..multimodal.nemotron_vl_media_errors import media_errors_are_the_clients
from ..transformers_utils.configs.nemotron_vl_checks import (
    IMAGE_TOKENS,
    check_image_tokens,
)
from ..transformers_utils.processors.nemotron_vl_resampling.threads import (
    set_image_threads,
)
from .nemotron_vl_embeddings import (
    check_encoder,
    check_images_without_pixels,
    check_no_embeddings,
)
from .nemotron_vl_messages import with_lists
from .nemotron_vl_metrics import count_prompts, counted_refusals
from .nemotron_vl_uuids import with_keys


class NemotronVLRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face tokenizers, with these checks."""

    # Errors in the loading of media that are not the client's.
    servers_errors: tuple[type[Exception], ...] = (MemoryError,)
    image_tokens: Sequence[str] = IMAGE_TOKENS

    def __init__(self, config: VllmConfig, tokenizer: Any) -> None:
        check_encoder(config)
        if tokenizer is not None:
            vocab_size = config.model_config.get_vocab_size()
            check_image_tokens(tokenizer.get_vocab(), vocab_size, self.image_tokens)
        settings = ImageConfig.from_vllm_config(config)
        self._trusted_uuids = settings.trusted_uuids
        # All before vLLM processes its first image, to warm up.
        servers = config.parallel_config._api_process_count
        set_image_threads(settings.image_threads, servers)
        images = config.model_config.multimodal_config
        cache_gb = 0 if images is None else images.mm_processor_cache_gb
        check_and_load_images(settings.more_image_formats, cache_gb, _load_png)
        super().__init__(config, tokenizer)

    def warmup(self, chat_params: ChatParams) -> None:
        """As vLLM's; it also compiles the decoder, before a request waits for it."""
        from ..transformers_utils.processors.nemotron_vl_resampling import png

        png.agrees_with_pillow()
        super().warmup(chat_params)

    async def render_chat_async(
        self,
        conversations: Sequence[Any],
        chat_params: ChatParams,
        tok_params: TokenizeParams | None = None,
        **options: Any,
    ):
        share_threads()
        tok_params = tok_params or self.default_chat_tok_params
        with counted_refusals():
            rendered = await super().render_chat_async(
                conversations, chat_params, tok_params, **options
            )
        count_prompts(rendered[1], tok_params.max_total_tokens)
        return rendered

    async def render_cmpl_async(
        self,
        prompts: Sequence[Any],
        tok_params: TokenizeParams | None = None,
        **options: Any,
    ):
        tok_params = tok_params or self.default_cmpl_tok_params
        with counted_refusals():
            rendered = await super().render_cmpl_async(prompts, tok_params, **options)
        count_prompts(rendered, tok_params.max_total_tokens)
        return rendered

    def render_messages(self, messages: list[Any], params: ChatParams):
        messages = with_lists(messages)
        if self._takes_embeddings(messages):
            messages = with_plain_embeddings(messages)
        with media_errors_are_the_clients(self.servers_errors):
            return super().render_messages(messages, params)

    async def render_messages_async(self, messages: list[Any], params: ChatParams):
        messages = with_lists(messages)
        if self._takes_embeddings(messages):
            messages = await asyncio.to_thread(with_plain_embeddings, messages)
        with media_errors_are_the_clients(self.servers_errors):
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
        check_images_without_pixels(prompt, self.config)
        check_no_embeddings(prompt, self.config)
        if self.tokenizer is None:  # --skip-tokenizer-init
            return
        written = self._count_placeholders(prompt)
        self._compare(prompt, "image", IMAGE_TOKEN, written)

    def _count_placeholders(self, prompt: TokensPrompt) -> int:
        placeholder = self.get_tokenizer().get_vocab().get(IMAGE_TOKEN, -1)
        return prompt["prompt_token_ids"].count(placeholder)

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


def _load_png(image: Image.Image, data: bytes) -> bool:
    """See ``png.load``.

    Its module imports numba. vLLM cannot start a worker on CPUs in a process that has
    done so (docs/upstream.md), such as that of an engine which runs in-process.
    """
    from ..transformers_utils.processors.nemotron_vl_resampling.png import load

    return load(image, data)
