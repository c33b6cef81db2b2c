"""The encoder in vLLM's manager of CUDA graphs; `support.encoder_graphs` is the GPU."""

import ctypes
import math
from types import SimpleNamespace

import pytest
import torch
from vllm.config import get_current_vllm_config

from nemotron_vl.verify.reference import Reference
from support.encoder_graphs import Graph, _graph, captured, graphs
from support.tiny import TILE, TILE_TOKENS

# The stand-in


class Recorded:
    """A function of one buffer, captured with other values than it is replayed on."""

    def __init__(self, function) -> None:
        self.buffer, self.output = torch.zeros(4), torch.empty(4)
        self.graph = Graph()
        with torch.inference_mode(), _graph(self.graph):
            self.output.copy_(function(self.buffer))

    def __call__(self, values: torch.Tensor) -> list[float]:
        self.buffer.copy_(values)
        self.graph.replay()
        return self.output.tolist()


VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_a_replay_computes_on_the_buffers_present_content():
    recorded = Recorded(
        lambda x: torch.nn.functional.gelu(x.view(2, 2) @ x.view(2, 2)).flatten()
    )
    square = VALUES.view(2, 2) @ VALUES.view(2, 2)
    assert recorded(VALUES) == torch.nn.functional.gelu(square).flatten().tolist()
    assert recorded(torch.zeros(4)) == [0] * 4


def test_what_was_computed_from_another_tensor_stays_as_it_was():
    """As in a graph: Python does not run again."""
    inputs = SimpleNamespace(pixels=torch.ones(4))
    recorded = Recorded(lambda x: x + inputs.pixels)
    inputs.pixels = torch.full((4,), 100.0)
    assert recorded(VALUES) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if x[0] > 0 else -x,
        lambda x: x * x.tolist()[0],
        lambda x: x[torch.tensor([0, 1, 2, 3])],
        lambda x: x[[3, 2, 1, 0]],
        lambda x: x[x == 0],
    ],
    ids=["item", "if", "tolist", "tensor", "list", "mask"],
)
def test_what_cuda_cannot_capture_is_refused(function):
    with pytest.raises(RuntimeError, match="A CUDA graph cannot hold"):
        Recorded(function)


def test_what_was_written_past_the_operators_is_seen():

    def in_memory(x):
        result = torch.empty(4)
        ctypes.memmove(result.data_ptr(), x.data_ptr(), x.nbytes)
        return result

    assert all(map(math.isnan, Recorded(in_memory)(VALUES)))


# The model


def test_features_of_replayed_graphs_equal_the_references(load_model, tiny):
    model = load_model(tiny, max_num_batched_tokens=8 * TILE_TOKENS)
    manager = graphs(model, get_current_vllm_config())
    reference = Reference.load(tiny)
    counts = [3, 1, 5]
    pixels = torch.randint(0, 256, (sum(counts), 3, TILE, TILE), dtype=torch.uint8)
    found = manager.execute(
        {"pixel_values_flat": pixels, "image_num_patches": torch.tensor(counts)}
    )
    expected = reference.encode(pixels).split(counts)
    for image, features in zip(expected, found, strict=True):
        torch.testing.assert_close(features, image.flatten(0, 1), rtol=1e-4, atol=1e-4)
    assert manager.graph_hits == len(counts)
    assert sum(meta.graph.replays for meta in captured(manager)) == 2
