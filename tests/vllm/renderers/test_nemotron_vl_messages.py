"""The parts of a message are seen, whatever type pydantic gave it."""

from types import SimpleNamespace

import numpy as np
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError

from support.chat import image_part, text_part
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import has_embeddings
from vllm_nemotron_vl.multimodal.nemotron_vl_video import NemotronVLVideoDataParser
from vllm_nemotron_vl.renderers.nemotron_vl import NemotronVLRenderer
from vllm_nemotron_vl.renderers.nemotron_vl_messages import media_urls, with_lists
from vllm_nemotron_vl.renderers.nemotron_vl_video import NemotronVLVideoRenderer

PARTS = [image_part("file:///a.png"), {**text_part("a"), "image_embeds": "AA"}]


@pytest.mark.parametrize("more", [{}, {"tool_call_id": 5}, {"reasoning": 5}], ids=str)
def test_parts_are_read_twice(more):
    messages = [{"role": "user", "content": PARTS, **more}]
    request = ChatCompletionRequest(model="tiny", messages=messages)
    assert isinstance(request.messages[0]["content"], list) == (not more)
    found = with_lists(request.messages)
    assert list(media_urls(found, "image")) == ["file:///a.png"]
    assert has_embeddings(found)
    assert found[0]["content"] == PARTS


def test_other_contents_are_kept():
    messages = [{"role": "user", "content": c} for c in ("text", None)] + ["odd"]
    assert with_lists(messages) == messages


@pytest.mark.parametrize("content", ["text", PARTS])
@pytest.mark.parametrize("images", [None, False, True])
def test_embeddings_are_read_where_the_server_takes_them(images, content):
    config = images if images is None else SimpleNamespace(enable_mm_embeds=images)
    renderer = SimpleNamespace(model_config=SimpleNamespace(multimodal_config=config))
    messages = [{"role": "user", "content": content}]
    taken = NemotronVLRenderer._takes_embeddings(renderer, messages)
    assert bool(taken) == (images is True and content is PARTS)


ENGINE = {"video": {"num_frames": 8, "resize": "fast"}}


@pytest.fixture
def renderer():
    """The renderer of an engine that takes 8 frames of a video."""
    renderer = NemotronVLVideoRenderer.__new__(NemotronVLVideoRenderer)
    config = SimpleNamespace(media_io_kwargs=ENGINE)
    renderer.model_config = SimpleNamespace(get_multimodal_config=lambda: config)
    parser = NemotronVLVideoDataParser(load_file=pytest.fail, num_frames=8)
    info = SimpleNamespace(data_parser=parser)
    renderer.mm_processor = SimpleNamespace(info=info)
    return renderer


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, None),
        ({"num_frames": 8}, None),
        ({"num_frames": 1, "resize": "fast"}, None),
        ({"num_frames": 9}, "from 1 to 8, but is 9"),
        ({"resize": "exact"}, r"not \['resize'\]"),
        ({"fps": 2, "num_frames": 3}, r"not \['fps'\]"),
        (["num_frames"], "must be an object"),
    ],
)
def test_a_request_may_take_fewer_frames(renderer, given, said):
    if said is None:
        renderer._check_settings(given)
    else:
        with pytest.raises(VLLMValidationError, match=said):
            renderer._check_settings(given)


@pytest.mark.parametrize(
    ("given", "frames"), [({"num_frames": 3}, 3), ({"resize": "fast"}, 8)]
)
def test_a_video_in_a_prompt_has_the_frames_that_the_request_asks_for(
    renderer, given, frames
):
    """vLLM gives this setting to loaders of URLs only."""
    image, video = object(), np.zeros((9, 4, 4, 3), np.uint8)
    data = {"image": image, "video": [video]}
    prompt = {"multi_modal_data": data, "media_io_kwargs": {"video": given}}
    renderer._read_videos(prompt)
    (found,) = prompt["multi_modal_data"]["video"]
    assert len(found.frames) == frames
    assert prompt["multi_modal_data"]["image"] is image


@pytest.mark.parametrize("data", [None, {}, {"image": []}, {"video": None}], ids=str)
def test_a_prompt_without_a_video_is_left_alone(renderer, data):
    settings = {"video": {"num_frames": 3}}
    prompt = {"multi_modal_data": data, "media_io_kwargs": settings}
    renderer._read_videos(prompt)
    assert prompt == {"multi_modal_data": data, "media_io_kwargs": settings}
