"""The models that find and rank pages, without weights."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from nemotron_vl.verify.errors import relative_error
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from vllm_nemotron_vl.model_executor.models import nemotron_vl_precision as precision
from vllm_nemotron_vl.model_executor.models import nemotron_vl_retrieval as models
from vllm_nemotron_vl.model_executor.models.nemotron_vl_retrieval_layout import (
    linear_layers,
    retrieval_layout,
)

KINDS = pytest.mark.parametrize("kind", ["embed", "rerank"])


@pytest.fixture(
    params=["LlamaNemotronVLForEmbedding", "LlamaNemotronVLForSequenceClassification"]
)
def model(request):
    return made(request.param)


def made(name):
    kind = getattr(models, name)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.tile_reuse = None
    model.encoder_dtype = torch.float32
    return model


def test_pixels_are_normalised_as_siglip_is_trained(model):
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(model._condition(levels), torch.tensor([-1, -0.6, 1]))
    normalised = torch.tensor([-1, 0.25], dtype=torch.float64)
    found = model._condition(normalised)
    assert found.dtype == torch.float32 and found.tolist() == [-1, 0.25]


@KINDS
def test_layers_of_adapters_have_the_checkpoints_names(request, kind):
    folder = request.getfixturevalue(f"{kind}_checkpoint")
    config = AutoConfig.from_pretrained(folder)
    layout = retrieval_layout(config)
    language = linear_layers(layout, encoder=False)
    prefix = "model." if kind == "rerank" else ""
    assert len(language) == len({*language}) == 2 * 7
    start = f"{prefix}language_model.layers."
    assert all(name.startswith(start) for name in language)
    both = linear_layers(layout, encoder=True)
    assert {*language} < {*both}
    assert len(both) == len({*both}) == 2 * 7 + 2 + 2 * 6
    assert f"{prefix}vision_model.vision_model.encoder.layers.1.mlp.fc2" in both


@KINDS
def test_the_layout_is_that_of_the_checkpoint(request, kind):
    """The random checkpoint also has SigLIP's head."""
    folder = request.getfixturevalue(f"{kind}_checkpoint")
    layout = retrieval_layout(AutoConfig.from_pretrained(folder))
    stored = load_file(folder / "model.safetensors")
    head = {name for name in stored if ".vision_model.head." in f".{name}"}
    assert layout.required.keys() == stored.keys() - head
    assert len(head) == 11


def test_embeddings_are_counted_in_patches_of_the_tower(model):
    model.patch_tokens, model.num_image_token = 1024, 256
    found = model.get_mm_lora_token_counts(
        modality="image", mm_kwargs=None, num_mm_embeds=3 * 256
    )
    assert found == (3 * 1024, 3 * 256)


def test_embeddings_of_different_lengths_are_taken(model):
    """One that vLLM's check refused ended the engine."""
    embeds = [torch.zeros(4, 8), torch.zeros(12, 8)]
    assert model.embed_multimodal(image_embeds=embeds) is embeds


@pytest.mark.parametrize("images", [1, 2, 0])
def test_images_of_a_passage_come_before_the_question(images):
    """As in the published code, with a space after each of them."""
    ranks = models.LlamaNemotronVLForSequenceClassification
    prompt = ranks.get_score_template("What?", "<image>" * images + "The <image>")
    text = "question:What? \n \n passage:The <image>"
    assert prompt == "<image> " * images + text


@KINDS
def test_the_encoder_computes_in_float32_where_bfloat16_is_emulated(
    request, load_model, monkeypatch, kind
):
    """As the chat model's; the language model gets the engine's dtype."""
    monkeypatch.setattr(precision, "has_native_products", lambda dtype: False)
    folder = request.getfixturevalue(f"{kind}_checkpoint")
    model = load_model(folder, "bfloat16")
    for part in (model.vision_model, model.mlp1):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    llama = model.language_model.model
    assert {p.dtype for p in llama.parameters()} == {torch.bfloat16}
    tiles = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = model.extract_feature(tiles)
    assert found.dtype == torch.bfloat16
    expected = RetrievalReference(folder).encode(tiles)
    assert relative_error(found.float(), expected) < 4e-3
