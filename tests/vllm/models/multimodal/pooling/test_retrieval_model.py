"""The models that find and rank pages, without weights."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from vllm.model_executor.models.internvl import InternVLChatModel

from nemotron_vl.verify.errors import relative_error
from nemotron_vl.verify.reference_retrieval import RetrievalReference
from vllm_nemotron_vl.model_executor.models import nemotron_vl_precision as precision
from vllm_nemotron_vl.model_executor.models import nemotron_vl_retrieval as models


@pytest.fixture(
    params=["LlamaNemotronVLForEmbedding", "LlamaNemotronVLForSequenceClassification"]
)
def model(request):
    return made(request.param)


def made(name):
    kind = getattr(models, name)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.tile_reuse = mock.Mock()
    model.encoder_dtype, model._load_format = torch.float32, "auto"
    model.language_model = torch.nn.Module()
    return model


def test_loading_empties_the_cache(model, monkeypatch):
    """Its tiles are of the weights before."""
    loaded = mock.Mock(return_value={"a"})
    monkeypatch.setattr(InternVLChatModel, "load_weights", loaded)
    assert model.load_weights([]) == {"a"}
    model.tile_reuse.clear.assert_called_once_with()


@pytest.mark.parametrize("there", [True, False], ids=["loaded", "not loaded"])
def test_the_language_models_own_head_may_be_missing(monkeypatch, there):
    """vLLM refuses parameters that no tensor of the checkpoint has filled."""
    model = made("LlamaNemotronVLForSequenceClassification")
    model.language_model.score = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.language_model.score.weight, torch.nan)
    names = {"score.weight"} | ({"language_model.score.weight"} if there else set())
    monkeypatch.setattr(
        InternVLChatModel, "load_weights", mock.Mock(return_value=names)
    )
    assert model.load_weights([]) == {
        "score.weight",
        "language_model.score.weight",
        "language_model.score.bias",
    }
    assert model.language_model.score.weight.isnan().all() == there


def test_pixels_are_normalised_as_siglip_is_trained(model):
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(model._condition(levels), torch.tensor([-1, -0.6, 1]))
    normalised = torch.tensor([-1, 0.25], dtype=torch.float64)
    found = model._condition(normalised)
    assert found.dtype == torch.float32 and found.tolist() == [-1, 0.25]


def test_layers_of_adapters_have_the_checkpoints_names(model):
    model.config = SimpleNamespace(
        text_config=SimpleNamespace(num_hidden_layers=2),
        vision_config=SimpleNamespace(num_hidden_layers=3),
    )
    assert model.is_pooling_model
    language = [*models._layers(model, encoder=False)]
    assert len(language) == len({*language}) == 2 * 7
    assert all(name.startswith("language_model.layers.") for name in language)
    both = [*models._layers(model, encoder=True)]
    assert both[: 2 * 7] == language
    assert len({*both}) == 2 * 7 + 2 + 3 * 6
    assert "vision_model.vision_model.encoder.layers.2.mlp.fc2" in both


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


@pytest.mark.parametrize("kind", ["embed", "rerank"])
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
