"""What the models that find and rank pages add to vLLM's, without weights."""

from unittest import mock

import pytest
import torch

from vllm_nemotron_vl.model_executor.models import nemotron_vl_retrieval as models


@pytest.fixture(
    params=["LlamaNemotronVLForEmbedding", "LlamaNemotronVLForSequenceClassification"]
)
def model(request):
    kind = getattr(models, request.param)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.tile_reuse = mock.Mock()
    return model


def test_loading_empties_the_cache(model, monkeypatch):
    """Its tiles are of the weights before."""
    loaded = mock.Mock(return_value={"a"})
    monkeypatch.setattr(models.InTreeForEmbedding, "load_weights", loaded)
    assert model.load_weights([]) == {"a"}
    model.tile_reuse.clear.assert_called_once_with()


def test_embeddings_of_different_lengths_are_taken(model):
    """One that vLLM's check refused ended the engine."""
    embeds = [torch.zeros(4, 8), torch.zeros(12, 8)]
    assert model.embed_multimodal(image_embeds=embeds) is embeds
