# SPDX-License-Identifier: Apache-2.0
"""The renderer of the models that find and rank pages."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.renderers.params import ChatParams, TokenizeParams

from ..config.nemotron_vl_names import (
    EMBED_MODEL_TYPE,
    EMBED_TEMPLATE,
    IMAGE_TOKEN,
)
from ..transformers_utils.processors.nemotron_vl_retrieval import RETRIEVAL_TOKENS
from .nemotron_vl import NemotronVLRenderer
from .nemotron_vl_metrics import count_prompts, counted_refusals
from .nemotron_vl_retrieval_scoring import use_published_prompts

# Types of a message's parts that vLLM reads as text
_TEXTS = ("text", "input_text", "output_text", "refusal", "thinking")


class NemotronVLRetrievalRenderer(NemotronVLRenderer):
    """Writes the published prefixes of questions and passages.

    Tokenizers of these checkpoints may have the template of the chat model that they
    began as, so only a template that the user passes replaces this package's.
    """

    image_tokens = RETRIEVAL_TOKENS

    def __init__(self, config: VllmConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        use_published_prompts()

    def render_messages(self, messages: list[Any], params: ChatParams):
        params = self._with_template(messages, params)
        return super().render_messages(messages, params)

    async def render_messages_async(self, messages: list[Any], params: ChatParams):
        params = self._with_template(messages, params)
        return await super().render_messages_async(messages, params)

    # vLLM renders requests for embeddings and scores with the synchronous methods.

    def render_chat(
        self,
        conversations: Sequence[Any],
        chat_params: ChatParams,
        tok_params: TokenizeParams | None = None,
        **options: Any,
    ):
        if tok_params is None:  # vLLM warms up
            return super().render_chat(conversations, chat_params, **options)
        with self.counted():
            rendered = super().render_chat(
                conversations, chat_params, tok_params, **options
            )
        self.count(rendered[1])
        return rendered

    def render_cmpl(self, *args: Any, **options: Any):
        with self.counted():
            rendered = super().render_cmpl(*args, **options)
        self.count(rendered)
        return rendered

    def counted(self) -> AbstractContextManager[None]:
        """Count the refusals of the block in the server's metrics."""
        return counted_refusals()

    def count(self, prompts: Sequence[Any]) -> None:
        """Count rendered prompts. A prompt without an answer may fill the context."""
        count_prompts(prompts, self.model_config.max_model_len + 1)

    def _tokenize_prompt(self, prompt: TextPrompt, params: TokenizeParams):
        if not prompt.get("multi_modal_data"):
            # The published code puts the image there, or nothing.
            text = prompt["prompt"].replace(IMAGE_TOKEN, "", 1)
            prompt = {**prompt, "prompt": text}
        return super()._tokenize_prompt(prompt, params)

    def _with_template(self, messages: list[Any], params: ChatParams) -> ChatParams:
        embeds = self.model_config.hf_config.model_type == EMBED_MODEL_TYPE
        if params.chat_template is not None or not embeds:
            return params
        _check_messages(messages)
        return replace(params, chat_template=_embed_template())

    def _count_placeholders(self, prompt: TokensPrompt) -> int:
        # Without an image, `<image>` is text: it stands for no embedding.
        if not prompt.get("multi_modal_data"):
            return 0
        # It need not be a token of its own.
        text = self.get_tokenizer().decode(prompt["prompt_token_ids"])
        return text.count(IMAGE_TOKEN)


def _check_messages(messages: Sequence[Any]) -> None:
    """Refuse what would be one embedding of several texts, or of none.

    Raises:
        VLLMValidationError: There are several questions or passages, or one is empty.
    """
    asked = [one for one in messages if one.get("role") in ("query", "document")]
    if len(asked) > 1:
        raise VLLMValidationError(
            f"The request has {len(asked)} messages of the role query or document, but "
            "an embedding is of one. Send a request for each.",
            parameter="messages",
        )
    for message in asked:
        content = message.get("content") or []
        parts = [content] if isinstance(content, str) else content
        if all(map(_is_blank, parts)):
            raise VLLMValidationError(
                f"The message of the role {message['role']} is empty.",
                parameter="messages",
            )


def _is_blank(part: Any) -> bool:
    if isinstance(part, dict):
        kind = part.get("type", "text")
        if kind not in _TEXTS:
            return False
        part = part.get("refusal" if kind == "refusal" else "text")
    return part is None or (isinstance(part, str) and not part.strip())


@cache
def _embed_template() -> str:
    return EMBED_TEMPLATE.read_text()
