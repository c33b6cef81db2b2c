# SPDX-License-Identifier: Apache-2.0
"""How vLLM processes the images of a request for this model.

Built on the image-only classes of vLLM's InternVL model.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, cast

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.internvl import (
    BaseInternVLDummyInputsBuilder,
    BaseInternVLMultiModalProcessor,
    BaseInternVLProcessingInfo,
    InternVLImagePixelInputs,
)
from vllm.multimodal.inputs import BatchedTensorInputs, MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, MultiModalDataItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails
from vllm.multimodal.processing.processor import (
    MultiModalPromptUpdates,
    PlaceholderFeaturesInfo,
)
from vllm.tokenizers.hf import HfTokenizer
from vllm.utils.tensor_schema import TensorShape

from ...config.nemotron_vl_names import IMAGES_ONLY
from ...multimodal.nemotron_vl import NemotronVLDataParser
from ...multimodal.nemotron_vl_embeddings import NUM_TILES
from ...transformers_utils.configs.nemotron_vl import NemotronVLConfig
from ...transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
    NemotronVLProcessor,
    image_seq_length,
)
from ...transformers_utils.processors.nemotron_vl_digest import NO_REUSE
from ...transformers_utils.processors.nemotron_vl_tiling import image_settings


class NemotronVLImagePixelInputs(InternVLImagePixelInputs):
    """The model's inputs for images.

    Dimensions, beside those of InternVL's inputs:
    - d: Number of bytes of a digest
    """

    tile_digests: Annotated[torch.Tensor | None, TensorShape("bnp", "d")]


class NemotronVLProcessingInfo(BaseInternVLProcessingInfo):
    """Image-only processing; settings come from the checkpoint's data files."""

    processor_class: type[NemotronVLProcessor] = NemotronVLProcessor

    def get_image_processor(self, **kwargs: object) -> NemotronVLImageProcessor:
        """Image processor with engine and request ``mm_processor_kwargs`` applied.

        Raises:
            VLLMValidationError: An unknown setting, or a value out of range.
        """
        config = self.get_hf_config()
        given = self.ctx.get_merged_mm_kwargs(kwargs)
        image_processor_class = self.processor_class.image_processor_class
        image_processor_class.check_names(given)
        # The pixels of an engine have one type, whatever a request asks for.
        on_device = self.ctx.get_mm_config().mm_device_do_normalize
        given["do_rescale"] = not on_device
        settings = {
            **self.checkpoint_settings(),
            "image_size": config.force_image_size,
            **given,
        }
        return image_processor_class(**settings, do_convert_rgb=False)

    def checkpoint_settings(self) -> dict[str, Any]:
        """How the checkpoint's files say that images are cut."""
        files = self.ctx.get_hf_image_processor_config(), vars(self.get_hf_config())
        return image_settings(*files)

    def get_hf_config(self) -> NemotronVLConfig:
        return self.ctx.get_hf_config(NemotronVLConfig)

    def get_hf_processor(self, **kwargs: object) -> NemotronVLProcessor:
        return self.processor_class(
            self.get_image_processor(**kwargs),
            cast(HfTokenizer, self.get_tokenizer()),
            image_seq_length=image_seq_length(self.get_hf_config()),
        )

    def get_data_parser(self) -> NemotronVLDataParser:
        return NemotronVLDataParser(**self.parser_options())

    def parser_options(self) -> dict[str, Any]:
        """Options of `NemotronVLDataParser`."""
        longest = self.ctx.model_config.max_model_len
        return {
            "most_tiles": longest // image_seq_length(self.get_hf_config()),
            "expected_hidden_size": self._get_expected_hidden_size(),
            "allow_missing_mm_embeddings": self.allow_missing_mm_embeddings,
        }

    def validate_num_items(self, modality: str, num_items: int) -> None:
        if modality == "video" and modality not in self.supported_mm_limits:
            raise VLLMValidationError(IMAGES_ONLY, parameter=modality)
        super().validate_num_items(modality, num_items)

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Computed from the settings; vLLM would process a dummy image for it."""
        return {"image": self.get_max_image_tokens()}


class NemotronVLDummyInputsBuilder(
    BaseInternVLDummyInputsBuilder[NemotronVLProcessingInfo]
):
    """Images for the warm-up and for memory profiling."""

    def _get_dummy_images(self, **kwargs: Any) -> list[Image.Image]:
        images = super()._get_dummy_images(**kwargs)
        for image in images:
            # Their tiles are equal; profiling must encode each of them.
            image.info[NO_REUSE] = True  # type: ignore[index]
        return images


class NemotronVLMultiModalProcessor(
    BaseInternVLMultiModalProcessor[NemotronVLProcessingInfo]
):
    """InternVL's processor, with a digest of each tile.

    It also takes images of which only the number of tiles is known, because an encoder
    elsewhere embeds them. The place of an image in the prompt is that of its
    embeddings, without the tokens around them: vLLM's render server sends places
    without a mask.
    """

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: MultiModalPromptUpdates
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        ids, places = super()._apply_prompt_updates(token_ids, mm_prompt_updates)
        return ids, {
            modality: [_of_embeddings(place) for place in its_places]
            for modality, its_places in places.items()
        }

    def _get_prompt_repl_image(
        self,
        mm_items: MultiModalDataItems,
        hf_processor: Any,
        out_mm_data: BatchedTensorInputs,
    ) -> PromptReplacement:
        update = super()._get_prompt_repl_image(mm_items, hf_processor, out_mm_data)
        images = mm_items.get("image")
        if not isinstance(images, DictEmbeddingItems):
            return update

        def tokens(number: int) -> PromptUpdateDetails:
            return hf_processor.get_image_repl(int(images.get(number)[NUM_TILES]))

        return replace(update, replacement=tokens)

    def _get_image_fields_config(
        self, hf_inputs: BatchFeature
    ) -> dict[str, MultiModalFieldConfig]:
        fields = super()._get_image_fields_config(hf_inputs)
        return {**fields, "tile_digests": digests_field("image", hf_inputs)}


def _of_embeddings(place: PlaceholderFeaturesInfo) -> PlaceholderFeaturesInfo:
    """A place without the tokens before and after its embeddings."""
    if place.is_embed is None:
        return place
    where = place.is_embed.nonzero()
    first, last = int(where[0]), int(where[-1])
    inside = slice(first, last + 1)
    mask = place.is_embed[inside]
    return replace(
        place,
        start_idx=place.start_idx + first,
        tokens=place.tokens[inside],
        is_embed=None if mask.all() else mask,
    )


def digests_field(modality: str, hf_inputs: BatchFeature) -> MultiModalFieldConfig:
    """How the digests of all tiles are split between images or videos."""
    tiles = hf_inputs.get(f"{modality}_num_patches", torch.empty(0))
    return MultiModalFieldConfig.flat_from_sizes(modality, tiles, keep_on_cpu=True)
