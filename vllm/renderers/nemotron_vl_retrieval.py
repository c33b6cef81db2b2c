# SPDX-License-Identifier: Apache-2.0
"""The renderer of the models that find and rank pages."""

from dataclasses import replace
from functools import cache
from typing import Any

from vllm.config import VllmConfig
from vllm.inputs import TokensPrompt
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
from vllm.renderers.params import ChatParams

from ..config.nemotron_vl_names import (
    EMBED_MODEL_TYPE,
    EMBED_TEMPLATE,
    IMAGE_TOKEN,
)
from ..multimodal.nemotron_vl_loading import CONNECTORS
from ..transformers_utils.processors.nemotron_vl_retrieval import RETRIEVAL_TOKENS
from .nemotron_vl import NemotronVLRenderer
from .nemotron_vl_media_errors import media_errors_are_the_clients


class NemotronVLRetrievalRenderer(NemotronVLRenderer):
    """Writes the published prefixes of questions and passages.

    Tokenizers of these checkpoints may have the template of the chat model that they
    began as, so only a template that the user passes replaces this package's.
    """

    image_tokens = RETRIEVAL_TOKENS

    def __init__(self, config: VllmConfig, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        # vLLM loads the images of /score and /rerank outside of the renderer.
        for name, connector in CONNECTORS.items():
            reporting = type(connector.__name__, (_ReportsErrors, connector), {})
            MEDIA_CONNECTOR_REGISTRY.register(name)(reporting)

    def render_messages(self, messages: list[Any], params: ChatParams):
        return super().render_messages(messages, self._with_template(params))

    async def render_messages_async(self, messages: list[Any], params: ChatParams):
        params = self._with_template(params)
        return await super().render_messages_async(messages, params)

    def _with_template(self, params: ChatParams) -> ChatParams:
        embeds = self.model_config.hf_config.model_type == EMBED_MODEL_TYPE
        if params.chat_template is not None or not embeds:
            return params
        return replace(params, chat_template=_embed_template())

    def _count_placeholders(self, prompt: TokensPrompt) -> int:
        # Without an image, `<image>` is text: it stands for no embedding.
        if not prompt.get("multi_modal_data"):
            return 0
        # It need not be a token of its own.
        text = self.get_tokenizer().decode(prompt["prompt_token_ids"])
        return text.count(IMAGE_TOKEN)


class _ReportsErrors:
    """Before a connector, reports its errors as the renderer does."""

    def fetch_image(self, *args: Any, **options: Any):
        with media_errors_are_the_clients(NemotronVLRenderer.servers_errors):
            return super().fetch_image(*args, **options)  # type: ignore[misc]


@cache
def _embed_template() -> str:
    return EMBED_TEMPLATE.read_text()
