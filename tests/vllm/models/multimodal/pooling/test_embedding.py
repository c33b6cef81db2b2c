"""Embeddings of questions and pages, compared with the reference."""

import pytest
import torch
from vllm.exceptions import VLLMValidationError

from nemotron_vl.verify.reference_retrieval import RetrievalReference
from support.noise import noise

OPTIONS = dict(
    dtype="float32",
    mm_processor_kwargs=None,
    max_model_len=1024,
    mm_processor_cache_gb=0,
    enable_prefix_caching=False,
    additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
)
PROMPTS = {
    "a question": ("query: what is the total?", []),
    "a text": ("passage: The total is 4711.", []),
    "one tile": ("passage: <image> ", [noise(64, 64)]),
    "seven tiles": ("passage: <image> ", [noise(300, 200)]),
    "image and text": ("passage: <image> The total.", [noise(130, 90)]),
    "two images": ("passage: <image> <image> ", [noise(64, 64), noise(100, 200)]),
    "<image> as text": ("passage: an <image> and an <image> in a text", []),
}


@pytest.fixture(scope="module")
def reference(embed_checkpoint):
    return RetrievalReference(embed_checkpoint)


@pytest.fixture(scope="module")
def llm(make_llm, embed_checkpoint):
    return make_llm(embed_checkpoint, **OPTIONS)


def embed(llm, requests, **params) -> list[torch.Tensor]:
    from vllm import PoolingParams

    prompts = [
        {"prompt": text, "multi_modal_data": {"image": images} if images else None}
        for text, images in requests
    ]
    outputs = llm.embed(prompts, pooling_params=PoolingParams(**params), use_tqdm=False)
    return [torch.tensor(output.outputs.embedding) for output in outputs]


def test_embeddings_are_those_of_the_reference(llm, reference):
    """In one batch; several lengths in a step would show a wrong mask."""
    found = embed(llm, PROMPTS.values(), use_activation=False)
    for name, (text, images), vector in zip(
        PROMPTS, PROMPTS.values(), found, strict=True
    ):
        expected = reference.pooled(text, images)
        assert torch.allclose(vector, expected, atol=1e-5), name


def test_they_are_normalised_by_default(llm, reference):
    text, images = PROMPTS["image and text"]
    (found,) = embed(llm, [(text, images)])
    expected = torch.nn.functional.normalize(reference.pooled(text, images), dim=0)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.releases
@pytest.mark.parametrize(
    "options",
    [
        dict(tensor_parallel_size=2, mm_encoder_tp_mode="weights"),
        dict(tensor_parallel_size=2, mm_encoder_tp_mode="data"),
        # On CPUs, vLLM's pipelines need a compiled model.
        dict(pipeline_parallel_size=2, enforce_eager=False),
    ],
    ids=["weights", "tiles", "layers"],
)
def test_two_ranks(start_llm, embed_checkpoint, reference, monkeypatch, options):
    """They divide the weights, also of the tower, or the tiles, or the layers."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # one core for each rank
    llm = start_llm(embed_checkpoint, **options, **OPTIONS)
    found = embed(llm, PROMPTS.values(), use_activation=False)
    for request, vector in zip(PROMPTS.values(), found, strict=True):
        assert torch.allclose(vector, reference.pooled(*request), atol=1e-5), request


def test_an_image_without_its_placeholder_is_refused(llm):
    with pytest.raises(VLLMValidationError, match="has 0 <image> placeholder"):
        embed(llm, [("passage: no place", [noise(64, 64)])])


def test_equal_tiles_are_encoded_once(llm, reference):
    """Of two equal images in a request, and again in the next request."""

    def encoded(model) -> int:
        return model.tile_reuse.counts["encoded"]

    image = noise(200, 64, seed=1)
    tiles = len(reference.to_pixels(image))
    prompt = "passage: <image> <image> "
    (before,) = llm.apply_model(encoded)
    for _ in range(2):
        (found,) = embed(llm, [(prompt, [image, image])], use_activation=False)
        assert torch.allclose(found, reference.pooled(prompt, [image] * 2), atol=1e-5)
        (after,) = llm.apply_model(encoded)
        assert after - before == tiles
