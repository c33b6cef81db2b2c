"""The parts of a message are seen, whatever type pydantic gave it."""

from types import SimpleNamespace

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from support.chat import image_part, text_part
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import has_embeddings
from vllm_nemotron_vl.renderers.nemotron_vl import NemotronVLRenderer
from vllm_nemotron_vl.renderers.nemotron_vl_messages import media_urls, with_lists

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
