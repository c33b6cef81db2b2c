"""A trainer replaces weights while a model serves: parts, chunks and sparse patches."""

import shutil

import pytest
import torch
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from support.loading import make_config
from support.reloading import MEAN, STD, TOWER, changed, in_block, state

GRID = TOWER + "model.patch_generator.pos_embed"
FEW = [  # tensors of all parts, which vLLM loads in different ways
    MEAN,
    STD,
    TOWER + "model.patch_generator.cls_token.token",
    TOWER + "model.patch_generator.embedder.weight",
    TOWER + "model.blocks.1.attn.qkv.weight",
    TOWER + "model.blocks.0.norm1.bias",
    "mlp1.1.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.1.self_attn.k_proj.weight",
    "language_model.model.layers.0.mlp.up_proj.weight",
    "language_model.lm_head.weight",
]


@pytest.mark.parametrize(
    "first",
    [
        "mlp1.1.weight",
        "mlp1.1.bias",
        TOWER + "model.blocks.0.mlp.fc1.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_a_refused_tensor_of_a_trainer_leaves_nothing(
    start, checkpoint, others, write, first
):
    """vLLM would keep what it has read of the layer, and use it next time."""
    model, reload = start(checkpoint)
    before = state(model)
    expected, _ = start(write("others", others))
    sent = {first: 3 * others[first], "mlp1.9.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="mlp1.9.weight"):
        reload(weights_iterator=iter(sent.items()))
    assert changed(before, state(model)) == set()
    reload(weights_iterator=iter(others.items()))
    assert changed(state(expected), state(model)) == set()


@pytest.mark.parametrize("files", [True, False])
def test_an_update_that_never_ended_leaves_nothing(
    start, checkpoint, others, write, files
):
    """Its trainer has died: nobody has told vLLM."""
    model, reload = start(checkpoint)
    before = state(model)
    initialize_layerwise_reload(model)
    model.load_weights([("mlp1.1.bias", others["mlp1.1.bias"])])
    if files:
        half = {name: t for name, t in others.items() if name != "mlp1.1.weight"}
        with pytest.raises(ValueError, match="lacks 1 of"):
            reload(weights_path=write("half", half))
    else:
        with pytest.raises(ValueError, match="mlp1.9.weight"):
            reload(weights_iterator=iter([("mlp1.9.weight", torch.zeros(1))]))
    assert changed(before, state(model)) == set()


def test_a_trainer_may_send_a_part_to_a_model_that_the_tensorizer_loaded(
    start, checkpoint, others
):
    """It leaves the model as torch makes it, ready for training."""
    model, _ = start(checkpoint)
    model.train()
    model._load_format = "tensorizer"
    part = {"mlp1.3.bias": others["mlp1.3.bias"]}
    model.load_weights(part.items())

    def tensorizer_weights_iterator():  # of its other format
        yield from part.items()

    model.train()
    with pytest.raises(ValueError, match="lacks"):
        model.load_weights(tensorizer_weights_iterator())


def test_a_trainer_may_send_a_part_to_a_model_of_any_loader(
    start, checkpoint, tmp_path
):
    """Also where the loader did not call `load_weights`; one statistic keeps the other,
    which differs from that of the configuration."""
    own = {MEAN: torch.full((3, 1, 1), 0.5), STD: torch.full((3, 1, 1), 0.25)}
    model, _ = start(checkpoint, pack_weights=False)
    model.load_weights(own.items())
    shards = tmp_path / "shards"
    ignored = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(checkpoint, shards, ignore=ignored)
    ShardedStateLoader.save_model(model, str(shards))
    model, reload = start(shards, pack_weights=False, load_format="sharded_state")
    kept = model.input_conditioner.scale.clone()
    assert torch.equal(kept, torch.full((3,), 1 / (255 * 0.25)))
    for send in (
        model.load_weights,
        lambda part: reload(weights_iterator=iter(part)),
    ):
        for mean in (0.75, 0.125):
            send([(MEAN, torch.full((3, 1, 1), mean))])
            assert torch.equal(model.input_conditioner.scale, kept)
            expected = torch.full((3,), -mean / 0.25)
            torch.testing.assert_close(model.input_conditioner.shift, expected)


@pytest.mark.parametrize("runner", [RunnerV1, RunnerV2])
def test_a_trainer_may_send_whole_layers_of_a_model(start, checkpoint, others, runner):
    model, reload = start(checkpoint, runner)
    before = state(model)
    block = {name: t for name, t in others.items() if in_block(name)}
    reload(weights_iterator=iter(block.items()))
    found = changed(before, state(model))
    assert len(found) == 12
    assert all(
        name.startswith("vision_model.model.encoder.layers.1.") for name in found
    )


def test_a_trainer_may_send_a_model_in_chunks(start, checkpoint, others, write):
    """In one update of vLLM's, as its engines for the transfer of weights do."""
    model, _ = start(checkpoint)
    model_config = make_config(checkpoint, "float32").model_config
    initialize_layerwise_reload(model)
    for name, tensor in others.items():  # also each of the statistics alone
        model.load_weights([(name, tensor)])
    finalize_layerwise_reload(model, model_config)
    expected, _ = start(write("others", others))
    # It was computed from a statistic and a buffer, with another rounding.
    shift = "input_conditioner.shift"
    assert changed(state(model), state(expected)) <= {shift}
    torch.testing.assert_close(state(model)[shift], state(expected)[shift])


def sparse(name: str, tensor: torch.Tensor, others: torch.Tensor, share: float):
    """A patch of some values of a tensor, and the tensor that it makes."""
    generator = torch.Generator().manual_seed(len(name))
    places = torch.randperm(tensor.numel(), generator=generator)
    places = places[: round(share * tensor.numel())]
    values = others.flatten()[places]
    patch = CheckpointWeightPatch(
        name, tuple(tensor.shape), tensor.dtype, values, places
    )
    return patch, tensor.flatten().index_copy(0, places, values).view_as(tensor)


def test_sparse_patches_change_some_values(start, checkpoint, tensors, others, write):
    model, _ = start(checkpoint, pack_weights=False)
    patched = dict(tensors)
    for turn in range(2):  # the second must not see anything else of the first
        patches = []
        for name in FEW:
            patch, patched[name] = sparse(
                name, patched[name], others[name] + turn, 0.34
            )
            patches.append(patch)
        load_checkpoint_weight_patches(model, patches)
    expected, _ = start(write("patched", patched), pack_weights=False)
    assert changed(state(model), state(expected)) == set()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_sparse_patch_has_the_whole_grid_of_positions_or_nothing(
    start, checkpoint, tensors, others, write, share
):
    model, _ = start(checkpoint, pack_weights=False)
    before = state(model)
    patch, grid = sparse(GRID, tensors[GRID], others[GRID], share)
    if share == 0.5:
        with pytest.raises(ValueError, match="all values of pos_embed or none"):
            load_checkpoint_weight_patches(model, [patch])
        assert changed(before, state(model)) == set()
        return
    load_checkpoint_weight_patches(model, [patch])
    path = write("patched", tensors | {GRID: grid})
    expected, _ = start(path, pack_weights=False)
    assert changed(state(model), state(expected)) == set()
    assert len(changed(before, state(model))) == share
