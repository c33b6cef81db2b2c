# SPDX-License-Identifier: Apache-2.0
"""Prompts of /score, /rerank and ``LLM.score`` for the models that find and rank pages.

vLLM chooses what makes these prompts by the kind of scores alone, so other models of
the process get vLLM's own behaviour from these classes.
"""

from typing import Any

from vllm.entrypoints.pooling.scoring.io_processor import (
    BiEncoderIOProcessor,
    CrossEncoderIOProcessor,
    ScoringIOProcessors,
)
from vllm.entrypoints.pooling.scoring.typing import ScoreData, ScoringData
from vllm.exceptions import VLLMValidationError

from ..config.nemotron_vl_names import (
    IMAGE_TOKEN,
    PASSAGE_PREFIX,
    QUERY_PREFIX,
    RETRIEVAL_TOKENIZER_MODE,
)


def use_published_prompts() -> None:
    """Make vLLM's processing of scores use the classes below, in this process."""
    for kind in (NemotronVLBiEncoder, NemotronVLCrossEncoder):
        ScoringIOProcessors[kind.name] = kind


def _is_ours(processor: Any) -> bool:
    return processor.model_config.tokenizer_mode == RETRIEVAL_TOKENIZER_MODE


class NemotronVLBiEncoder(BiEncoderIOProcessor):
    """Compares embeddings of a question and of passages, with their prefixes."""

    def valid_inputs(self, data_1: Any, data_2: Any) -> ScoringData:
        scoring = super().valid_inputs(data_1, data_2)
        if _is_ours(self):
            return ScoringData(
                [_as_published(data, QUERY_PREFIX) for data in scoring.data_1],
                [_as_published(data, PASSAGE_PREFIX) for data in scoring.data_2],
            )
        return scoring


class NemotronVLCrossEncoder(CrossEncoderIOProcessor):
    """Ranks passages; the model class has the prompt."""

    def valid_inputs(self, data_1: Any, data_2: Any) -> ScoringData:
        scoring = super().valid_inputs(data_1, data_2)
        if _is_ours(self):
            scoring.data_2 = [_as_published(data) for data in scoring.data_2]
        return scoring

    def render(self, render_params: Any) -> Any:
        if not _is_ours(self):
            return super().render(render_params)
        with self.renderer.counted():  # type: ignore[attr-defined]
            rendered = super().render(render_params)
        self.renderer.count([rendered["prompts"]])  # type: ignore[attr-defined]
        return rendered


def _as_published(data: ScoreData, prefix: str | None = None) -> ScoreData:
    """A question or a passage, with its prefix before its images and its text.

    Raises:
        VLLMValidationError: It is an empty question; its text has the placeholder of
            an image beside images, or, without a prefix, begins with two of them.
    """
    parts: list[Any] = [data] if isinstance(data, str) else data
    texts, images = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") == "text":
            texts.append(part["text"])
        else:
            images.append(part)
    text = "\n".join(texts)
    if not images:
        if prefix == QUERY_PREFIX and not text.strip():
            raise VLLMValidationError("The question is empty.", parameter="query")
        if prefix:  # The renderer leaves out the first placeholder.
            return f"{prefix} {text}"
        if text.startswith(2 * IMAGE_TOKEN):
            raise VLLMValidationError(
                f"A text without an image must not begin with {2 * IMAGE_TOKEN}: the "
                "prompt would have the place of an image.",
                parameter="documents",
            )
        # The published code puts the image there, or nothing.
        return text.replace(IMAGE_TOKEN, "", 1)
    if IMAGE_TOKEN in text:
        raise VLLMValidationError(
            f"A text beside an image must not contain {IMAGE_TOKEN}: the server writes "
            "it where the image belongs.",
            parameter="documents",
        )
    if prefix:
        text = f"{prefix} " + f"{IMAGE_TOKEN} " * len(images) + text
    return [*images, {"type": "text", "text": text}]
