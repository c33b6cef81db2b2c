# SPDX-License-Identifier: Apache-2.0
"""Configuration of the models that find and rank pages.

The keys are those of ``nvidia/llama-nemotron-embed-vl-1b-v2`` and of
``nvidia/llama-nemotron-rerank-vl-1b-v2``; docs/provenance.md has their sources.
"""

from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, SiglipVisionConfig

from ...config.nemotron_vl_names import (
    EMBED_MODEL_TYPE,
    PASSAGE_PREFIX,
    QUERY_PREFIX,
    RERANK_MODEL_TYPE,
)
from .nemotron_vl import DataOnlyConfig, sub_config
from .nemotron_vl_schema import check_retrieval_sizes

# Values of keys that the models are computed with. One in the second table is needed:
# the default of the published classes differs, or there is none for null. Nothing reads
# `bidirectional_attention`, which is false in the published ranking model.
_OPTIONAL = {
    "passage_prefix": (PASSAGE_PREFIX,),
    "query_prefix": (QUERY_PREFIX,),
    "select_layer": (-1,),
}
_REQUIRED = {
    "downsample_ratio": (1, 0.5, 0.25),
    "pooling": ("avg", "cls", "last"),
    "ps_version": ("v1", "v2"),
}


class NemotronVLBidirectionalConfig(DataOnlyConfig, LlamaConfig):
    """The bidirectional Llama, ``llm_config``. Its keys are those of Llama."""

    model_type = "llama_bidirec"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class NemotronVLEmbedConfig(DataOnlyConfig):
    """Composite configuration of ``LlamaNemotronVLModel``.

    Args:
        llm_config: `NemotronVLBidirectionalConfig` or its dict. vLLM finds it as
            ``text_config`` through its attribute mapping.
        vision_config: ``SiglipVisionConfig`` or its dict.
        force_image_size: Side of a tile in pixels.
        downsample_ratio: Linear factor of the pixel shuffle (0.5 turns 2x2
            patches into one image token).
        kwargs: All other keys of ``config.json``. They are kept and saved again.
    """

    model_type = EMBED_MODEL_TYPE
    sub_configs = {
        "llm_config": NemotronVLBidirectionalConfig,
        "vision_config": SiglipVisionConfig,
    }

    def __init__(
        self,
        llm_config: dict[str, Any] | PreTrainedConfig | None = None,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        *,
        force_image_size: int = 512,
        downsample_ratio: float = 0.5,
        **kwargs: Any,
    ) -> None:
        self.llm_config = self._part("llm_config", llm_config)
        self.vision_config = self._part("vision_config", vision_config)
        self.force_image_size = force_image_size
        self.downsample_ratio = downsample_ratio
        kwargs.pop("text_config", None)
        super().__init__(**kwargs)

    def _part(self, key: str, value: Any) -> Any:
        """A part of the model, whose type must be the supported one."""
        kind = self.sub_configs[key]
        found = getattr(value, "model_type", None)
        if isinstance(value, dict):
            found = value.get("model_type")
        if found not in (None, kind.model_type):
            raise ValueError(
                f"config.json: {key}.model_type = {found!r} is not supported; "
                f"supported: {kind.model_type!r}."
            )
        return sub_config(kind, value)

    @property
    def task_instructions(self) -> dict[str, str]:
        """What vLLM writes before a text, by the ``input_type`` of /v2/embed."""
        query, document = f"{QUERY_PREFIX} ", f"{PASSAGE_PREFIX} "
        return {
            "query": query,
            "search_query": query,
            "document": document,
            "search_document": document,
        }

    def check_servable(self) -> None:
        """Refuse what this model would compute wrongly.

        Raises:
            ValueError: Names the key of ``config.json``, the value and what is
                supported.
        """
        check_retrieval_sizes(self)
        self._check_values(_OPTIONAL | _REQUIRED, required=_REQUIRED)
        vision = self.vision_config
        unit = vision.patch_size * round(1 / self.downsample_ratio)
        if self.force_image_size % unit or vision.image_size != self.force_image_size:
            raise ValueError(
                f"config.json: force_image_size = {self.force_image_size} is not "
                "supported; it must equal vision_config.image_size "
                f"{vision.image_size} and be a multiple of patch_size / "
                f"downsample_ratio = {unit} pixels."
            )

    def _check_values(self, supported: dict[str, tuple], required: Any = ()) -> None:
        for key, values in supported.items():
            found = getattr(self, key, None)
            if found in values or (found is None and key not in required):
                continue
            allowed = ", ".join(map(repr, values))
            what = (
                f"the key {key!r} is missing or null"
                if found is None
                else f"{key} = {found!r} is not supported"
            )
            raise ValueError(f"config.json: {what}; supported: {allowed}.")


class NemotronVLRerankConfig(NemotronVLEmbedConfig):
    """Composite configuration of ``LlamaNemotronVLForSequenceClassification``.

    Args:
        temperature: Divisor of the score. vLLM does not divide, so it must be 1.
        kwargs: As of `NemotronVLEmbedConfig`.
    """

    model_type = RERANK_MODEL_TYPE
    # transformers saves a setting of sampling only where it is a field of the class.
    temperature: float = 1.0

    def __init__(self, *, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # transformers drops the key, which it takes for a setting of sampling.
        self.temperature = temperature

    @property
    def task_instructions(self) -> None:  # type: ignore[override]
        """None: the model embeds nothing."""

    def check_servable(self) -> None:
        """See the base class; also compares the two numbers of labels."""
        super().check_servable()
        values = {"temperature": (1,), "prompt_template": ("v1",)}
        self._check_values(values, required={"prompt_template"})
        outer, inner = self.num_labels, self.llm_config.num_labels
        if (outer, inner) != (1, 1):
            raise ValueError(
                "config.json: the model gives one score, so id2label must have one "
                "label, at the top level and in llm_config; they have "
                f"{outer} and {inner}. vLLM sizes the head by llm_config.num_labels, "
                "whose default is 2, and decides by the top level whether to rank."
            )
