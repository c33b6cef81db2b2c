"""The parts of a message are seen, whatever type pydantic gave it."""

from types import SimpleNamespace

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError

from support.chat import image_part, text_part
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import has_embeddings
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
def test_a_request_may_take_fewer_frames(given, said):
    config = SimpleNamespace(media_io_kwargs=ENGINE)
    model = SimpleNamespace(get_multimodal_config=lambda: config)
    renderer = SimpleNamespace(model_config=model)
    if said is None:
        NemotronVLVideoRenderer._check_settings(renderer, given)
    else:
        with pytest.raises(VLLMValidationError, match=said):
            NemotronVLVideoRenderer._check_settings(renderer, given)
