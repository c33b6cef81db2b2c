"""Questions and passages of scores become what the models were trained with."""

import contextlib
from types import SimpleNamespace

import pytest
from vllm.entrypoints.pooling.scoring.io_processor import CrossEncoderIOProcessor
from vllm.exceptions import VLLMValidationError

from vllm_nemotron_vl.config.nemotron_vl_names import RETRIEVAL_TOKENIZER_MODE
from vllm_nemotron_vl.renderers.nemotron_vl_retrieval_scoring import (
    NemotronVLCrossEncoder,
    _as_published,
)

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("data", "prefix", "expected"),
    [
        ("a", "query:", "query: a"),
        ("an <image>", "passage:", "passage: an <image>"),  # the renderer's
        ([text("a"), text("b")], "passage:", "passage: a\nb"),
        ([IMAGE, text("a")], "passage:", [IMAGE, text("passage: <image> a")]),
        ([text("a"), IMAGE], None, [IMAGE, text("a")]),
        ([IMAGE], None, [IMAGE, text("")]),
        ("an <image> and an <image>", None, "an  and an <image>"),
        ("a", None, "a"),
    ],
)
def test_prefixes_and_placeholders(data, prefix, expected):
    assert _as_published(data, prefix) == expected


@pytest.mark.parametrize(
    "data", ["<image><image> a", [IMAGE, text("an <image>")], [IMAGE, "an <image>"]]
)
def test_a_text_that_would_move_an_image_is_refused(data):
    with pytest.raises(VLLMValidationError, match="must not"):
        _as_published(data)


@pytest.mark.parametrize("mode", [RETRIEVAL_TOKENIZER_MODE, "hf"])
def test_prompts_of_these_models_alone_are_counted(monkeypatch, mode):
    """Renderers of other models have no counters."""
    rendered, counted = {"prompts": ["a prompt"]}, []
    renderer = SimpleNamespace()
    if mode == RETRIEVAL_TOKENIZER_MODE:
        renderer.counted, renderer.count = contextlib.nullcontext, counted.extend
    monkeypatch.setattr(CrossEncoderIOProcessor, "render", lambda *_: rendered)
    encoder = NemotronVLCrossEncoder.__new__(NemotronVLCrossEncoder)
    encoder.model_config = SimpleNamespace(tokenizer_mode=mode)
    encoder.renderer = renderer
    assert encoder.render(None) is rendered
    assert counted == [["a prompt"]] * (mode == RETRIEVAL_TOKENIZER_MODE)
