"""The counters of an API server, without one; test_bad_requests.py has one."""

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY
from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer
from vllm.renderers.params import TokenizeParams
from vllm.v1.metrics.prometheus import unregister_vllm_metrics

from vllm_nemotron_vl.renderers import nemotron_vl_metrics as metrics
from vllm_nemotron_vl.renderers.nemotron_vl import NemotronVLRenderer


@pytest.fixture(scope="module", autouse=True)
def counters():
    """Another module's engine may have unregistered those of before."""
    unregister_vllm_metrics()
    metrics._counters.cache_clear()


def refused(cause: str) -> float:
    name = "vllm:mm_requests_refused_total"
    return REGISTRY.get_sample_value(name, {"cause": cause}) or 0


def image_tokens() -> float:
    name = "vllm:mm_prompt_tokens_total"
    return REGISTRY.get_sample_value(name, {"modality": "image"}) or 0


def fail(error: Exception) -> None:
    with pytest.raises(type(error)), metrics.counted_refusals():
        raise error


def prompt(*images: int, words: int = 5) -> dict:
    """A prompt with images of so many tokens."""
    places = [SimpleNamespace(get_num_embeds=lambda n=n: n) for n in images]
    ids = [0] * (words + sum(images))
    return {"prompt_token_ids": ids, "mm_placeholders": {"image": places}}


def test_every_cause_has_a_series_from_the_first_request_on():
    with metrics.counted_refusals():
        pass
    found = {
        sample.labels["cause"]
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "vllm:mm_requests_refused_total"
    }
    assert found == set(metrics.CAUSES)


def test_unknown_refusals_are_others():
    before = refused("other")
    fail(VLLMValidationError("A uuid must be a text."))
    fail(ValueError())
    assert refused("other") == before + 2


def test_errors_of_the_server_are_no_refusals():
    before = [refused(cause) for cause in metrics.CAUSES]
    fail(RuntimeError("The image cannot be read"))
    fail(MemoryError())
    assert [refused(cause) for cause in metrics.CAUSES] == before


def test_the_tokens_of_all_images_of_all_prompts_are_counted():
    before = image_tokens()
    metrics.count_prompts([prompt(256, 512), prompt(256), prompt()], 4096)
    metrics.count_prompts([{"prompt_token_ids": [1, 2]}, {"prompt_embeds": 0}], 4096)
    assert image_tokens() == before + 1024


@pytest.mark.parametrize(
    ("words", "limit", "refusals"),
    [(4, 256, 0), (5, 256, 1), (6, 256, 1), (6, None, 0)],
)
def test_a_prompt_without_room_for_an_answer_is_refused_and_not_counted(
    words, limit, refusals
):
    before = refused("too_long"), image_tokens()
    metrics.count_prompts([prompt(251, words=words)], limit)
    assert refused("too_long") - before[0] == refusals
    assert (image_tokens() > before[1]) is not bool(refusals)


@pytest.mark.parametrize(("of_request", "refusals"), [(None, 1), (300, 0), (200, 1)])
@pytest.mark.parametrize("kind", ["chat", "cmpl"])
def test_the_limit_is_the_requests_or_else_the_engines(
    monkeypatch, kind, of_request, refusals
):
    used = []

    async def rendered(self, prompts, *params, **options):
        used.append(params[-1])
        return (prompts, prompts) if kind == "chat" else prompts

    engine = TokenizeParams(max_total_tokens=256)
    monkeypatch.setattr(HfRenderer, f"render_{kind}_async", rendered)
    monkeypatch.setattr(HfRenderer, f"default_{kind}_tok_params", engine)
    given = of_request and TokenizeParams(max_total_tokens=of_request)
    renderer = NemotronVLRenderer.__new__(NemotronVLRenderer)
    render = getattr(renderer, f"render_{kind}_async")
    chat = [None] if kind == "chat" else []
    before = refused("too_long")
    asyncio.run(render([prompt(251)], *chat, given))
    assert refused("too_long") - before == refusals
    assert used == [given or engine]
