# SPDX-License-Identifier: Apache-2.0
"""Refuses prompts whose ``<image>`` placeholders are not exactly the images.

``<image>`` is an ordinary string that anybody can type, and at once the token
that stands for an image feature. A typed one could take the place of another
message's picture, so both counts must agree before anything reaches the engine.
"""

from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput, TokensInput, TokensPrompt
from vllm.renderers.hf import HfRenderer

PLACEHOLDER = "<image>"


class NemotronVLRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face tokenizers with the check above."""

    def _process_tokens(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        self._check_placeholders(prompt)
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(
        self, prompt: TokensPrompt, *, skip_mm_cache: bool = False
    ) -> TokensInput | MultiModalInput:
        self._check_placeholders(prompt)
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def _check_placeholders(self, prompt: TokensPrompt) -> None:
        if self.tokenizer is None:  # --skip-tokenizer-init
            return
        placeholder = self.tokenizer.get_vocab().get(PLACEHOLDER, -1)
        written = prompt["prompt_token_ids"].count(placeholder)
        given = self._count_images(prompt)
        if written == given:
            return
        raise VLLMValidationError(
            f"The prompt has {written} {PLACEHOLDER} placeholder(s) for {given} "
            f"image(s); it must have one for each. In a chat request the server "
            f"writes them, so the text must not contain {PLACEHOLDER}; in a plain "
            f"prompt, write {PLACEHOLDER} where each image belongs.",
            parameter="prompt",
        )

    def _count_images(self, prompt: TokensPrompt) -> int:
        if self.mm_processor is None:  # --limit-mm-per-prompt image=0
            return 0
        images = (prompt.get("multi_modal_data") or {}).get("image")
        return self.mm_processor.info.data_parser.count_images(images)
