# SPDX-License-Identifier: Apache-2.0
"""``Llama_Nemotron_Nano_VL_Video``: the same model, for videos beside images.

The classes for images stay as they are. Those here join them with InternVL's classes
for videos, as InternVL's own classes extend its classes for images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput
from vllm.model_executor.models.interfaces import MultiModalEmbeddings
from vllm.model_executor.models.internvl import (
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    ProcessorInputs,
    PromptReplacement,
    TimingContext,
)

from ...config.nemotron_vl_names import IMAGE_TOKEN
from ...config.nemotron_vl_video import (
    FRAMES_KEY,
    VIDEO_PLACEHOLDER,
    most_frames_in,
)
from ...multimodal.nemotron_vl_video import (
    Loaded,
    NemotronVLVideoDataParser,
    Video,
)
from ...transformers_utils.processors.nemotron_vl import image_seq_length
from ...transformers_utils.processors.nemotron_vl_video import (
    NemotronVLProcessorWithVideo,
    NemotronVLVideoLoader,
)
from .nemotron_vl import LlamaNemotronVLChatModel
from .nemotron_vl_names import HF_TO_VLLM
from .nemotron_vl_processing import (
    NemotronVLDummyInputsBuilder,
    NemotronVLMultiModalProcessor,
    NemotronVLProcessingInfo,
    digests_field,
)

_VIDEO_UUID = "video-"  # put before the uuids of videos


class NemotronVLVideoProcessingInfo(NemotronVLProcessingInfo, InternVLProcessingInfo):
    """Processing of images and videos; ``media_io_kwargs`` sets the frames."""

    processor_class = NemotronVLProcessorWithVideo
    # The embeddings of a video's frames take the place of image tokens.
    ctx_video_token = IMAGE_TOKEN

    @property
    def video_settings(self) -> dict[str, Any]:
        """The engine's settings of the loader, see `loader_settings`."""
        return self.ctx.get_mm_config().media_io_kwargs["video"]

    def get_data_parser(self) -> NemotronVLVideoDataParser:
        return NemotronVLVideoDataParser(
            load_file=self._load_file,
            num_frames=self.video_settings[FRAMES_KEY],
            **self.parser_options(),
        )

    def _load_file(self, data: bytes, num_frames: int) -> Loaded:
        settings = self.video_settings
        return NemotronVLVideoLoader.load_bytes(
            data,
            num_frames,
            tile_size=settings["tile_size"],
            resize=settings["resize"],
        )

    def get_num_frames_with_most_features(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> int:
        """Frames of the longest video: the setting, or what the context can hold.

        The limit is the model's context and not `seq_len`, which may be that of one
        step of the scheduler.
        """
        context = self.ctx.model_config.max_model_len
        most = most_frames_in(context, image_seq_length(self.get_hf_config()))
        return max(1, min(self.video_settings[FRAMES_KEY], most))

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        frames = self.get_num_frames_with_most_features(seq_len, mm_counts)
        tokens = image_seq_length(self.get_hf_config()) * frames
        images = super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        return {**images, "video": tokens}


class NemotronVLVideoDummyInputsBuilder(
    NemotronVLDummyInputsBuilder, InternVLDummyInputsBuilder
):
    """Images and videos for the warm-up and for memory profiling."""

    info: NemotronVLVideoProcessingInfo

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        videos = mm_counts.get("video", 0)
        images = {"image": mm_counts.get("image", 0)}
        return super().get_dummy_text(images) + VIDEO_PLACEHOLDER * videos

    def _get_dummy_videos(self, **kwargs: Any) -> list[Any]:
        # As for dummy images, profiling must encode each frame.
        videos = super()._get_dummy_videos(**kwargs)
        return [_dummy_video(frames) for frames in videos]


def _dummy_video(frames: np.ndarray) -> Video:
    images = [Image.fromarray(frame) for frame in frames]
    return Video(images, frames, reuse=False)


class NemotronVLVideoMultiModalProcessor(
    NemotronVLMultiModalProcessor, InternVLMultiModalProcessor
):
    """The processor of images, which also replaces the placeholders of videos."""

    info: NemotronVLVideoProcessingInfo

    def apply(
        self, inputs: ProcessorInputs, timing_ctx: TimingContext
    ) -> MultiModalInput:
        """Process a request.

        Raises:
            VLLMValidationError: The request's `resize` is not that of its video file,
                or an image has a uuid that could be the name of a video.
        """
        self._check_recipe(inputs)
        inputs = replace(
            inputs, mm_uuid_items=_distinct_uuids(inputs.mm_uuid_items or {})
        )
        return super().apply(inputs, timing_ctx)

    def _check_recipe(self, inputs: ProcessorInputs) -> None:
        videos = inputs.mm_data_items.get("video")
        used = {video.resize for video in videos or () if video is not None} - {None}
        if not used:
            return
        asked = self.info.get_image_processor(**inputs.hf_processor_mm_kwargs).resize
        if used != {asked}:
            raise VLLMValidationError(
                f"The frames of a video file are resized as the server's setting says, "
                f"resize={used.pop()!r}, but the request asks for {asked!r}.",
                parameter="mm_processor_kwargs",
            )

    def _get_video_fields_config(
        self, hf_inputs: BatchFeature
    ) -> dict[str, MultiModalFieldConfig]:
        fields = super()._get_video_fields_config(hf_inputs)
        return {**fields, "video_tile_digests": digests_field("video", hf_inputs)}

    def _get_prompt_repl_video(
        self, mm_items, hf_processor, out_mm_data
    ) -> PromptReplacement:
        update = super()._get_prompt_repl_video(mm_items, hf_processor, out_mm_data)
        return replace(update, target=hf_processor.video_placeholder_ids)


def _distinct_uuids(
    uuids: Mapping[str, Sequence[str | None]],
) -> dict[str, Sequence[str | None]]:
    """Uuids under which vLLM's caches tell videos from images.

    The caches have one key for all modalities. Images keep their names, under which
    an encoder elsewhere may have stored their embeddings.
    """
    if any(x and x.startswith(_VIDEO_UUID) for x in uuids.get("image", ())):
        raise VLLMValidationError(
            f"The uuid of an image must not begin with {_VIDEO_UUID!r}: those of "
            "videos do.",
            parameter="uuid",
        )
    videos = [None if x is None else _VIDEO_UUID + x for x in uuids.get("video", ())]
    return {**uuids, "video": videos} if videos else {**uuids}


@MULTIMODAL_REGISTRY.register_processor(
    NemotronVLVideoMultiModalProcessor,
    info=NemotronVLVideoProcessingInfo,
    dummy_inputs=NemotronVLVideoDummyInputsBuilder,
)
class LlamaNemotronVLVideoChatModel(LlamaNemotronVLChatModel):
    """Llama-3.1-Nemotron-Nano-VL: images, videos and text in, text out.

    The embedding of a video is that of an image of as many tiles.
    """

    # vLLM caches a model's flags until the model's own file changes, so those of
    # the base class are restated.
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
    supports_encoder_tp_data = True
    supports_mm_device_do_normalize = True
    supports_tower_connector_lora = True

    tower_modalities = {"image", "video"}

    hf_to_vllm_mapper = HF_TO_VLLM

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality == "video":
            return VIDEO_PLACEHOLDER
        if modality.startswith("video"):
            raise VLLMValidationError(
                f"{modality} are not supported. Send the video, or image_embeds.",
                parameter=modality,
            )
        return super().get_placeholder_str(modality, i)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Embeddings of images or videos, ``(tokens, hidden_size)`` for each.

        Args:
            kwargs: As of the base class. Those of videos end with ``_video`` or begin
                with ``video_``. vLLM passes items of one modality at a time.
        """
        if "pixel_values_flat_video" not in kwargs:
            return super().embed_multimodal(**kwargs)
        assert "pixel_values_flat" not in kwargs
        return super().embed_multimodal(
            pixel_values_flat=kwargs["pixel_values_flat_video"],
            image_num_patches=kwargs["video_num_patches"],
            image_token_id=kwargs["video_token_id"],
            tile_digests=kwargs.get("video_tile_digests"),
        )
