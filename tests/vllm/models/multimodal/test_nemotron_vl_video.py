"""The model class for videos: what it shares with the one for images."""

import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.internvl import (
    InternVLDummyInputsBuilder,
    InternVLMultiModalProcessor,
    InternVLProcessingInfo,
)

from support.clips import VIDEO
from support.processing import TILE, TOKENS
from vllm_nemotron_vl.model_executor.models.nemotron_vl import LlamaNemotronVLChatModel
from vllm_nemotron_vl.model_executor.models.nemotron_vl_video import (
    LlamaNemotronVLVideoChatModel,
)


def test_the_classes_join_those_for_images_and_those_of_internvl():
    factories = LlamaNemotronVLVideoChatModel._processor_factory
    images = LlamaNemotronVLChatModel._processor_factory
    for ours, image_class, internvl in (
        (factories.processor, images.processor, InternVLMultiModalProcessor),
        (factories.dummy_inputs, images.dummy_inputs, InternVLDummyInputsBuilder),
        (factories.info, images.info, InternVLProcessingInfo),
    ):
        assert ours.__bases__ == (image_class, internvl)
        assert not issubclass(image_class, internvl)


@pytest.mark.parametrize(
    "limits", [{"image": 0}, {"video": 0}, {"image": 0, "video": 0}]
)
def test_the_tower_is_kept_while_images_or_videos_are_on(
    load_model, checkpoint, limits
):
    options = dict(hf_overrides=VIDEO, limit_mm_per_prompt=limits)
    names = [name for name, _ in load_model(checkpoint, **options).named_parameters()]
    tower = any(name.startswith("vision_model.") for name in names)
    assert tower == (len(limits) == 1)


def test_a_video_is_embedded_as_an_image_of_as_many_tiles(load_model, checkpoint):
    model = load_model(checkpoint, hf_overrides=VIDEO)
    tiles = torch.randint(0, 256, (7, 3, TILE, TILE), dtype=torch.uint8)
    counts, token = torch.tensor([3, 4]), torch.tensor(9)
    names = {
        "pixel_values_flat": tiles,
        "image_num_patches": counts,
        "image_token_id": token,
    }
    images = model.embed_multimodal(**names)
    videos = model.embed_multimodal(
        pixel_values_flat_video=tiles, video_num_patches=counts, video_token_id=token
    )
    assert [len(video) for video in videos] == [3 * TOKENS, 4 * TOKENS]
    assert all(map(torch.equal, images, videos))


def test_placeholders_of_the_model():
    model = LlamaNemotronVLVideoChatModel
    assert model.get_placeholder_str("video", 1) == "<img></img>"
    assert model.get_placeholder_str("image", 1) == "<image>"
    with pytest.raises(VLLMValidationError, match="video_embeds are not supported"):
        model.get_placeholder_str("video_embeds", 1)
    with pytest.raises(ValueError, match="not audio"):
        model.get_placeholder_str("audio", 1)


def test_the_flags_are_those_of_the_class_for_images():
    from vllm.model_executor.models.registry import _ModelInfo

    ours, images = (
        vars(_ModelInfo.from_model_cls(model))
        for model in (LlamaNemotronVLVideoChatModel, LlamaNemotronVLChatModel)
    )
    assert ours | {"architecture": ""} == images | {"architecture": ""}
