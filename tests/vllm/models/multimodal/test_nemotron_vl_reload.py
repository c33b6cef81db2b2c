"""Weights are replaced while a model serves: from files, in chunks, in sparse patches.

The model runners' own functions reload, on a model without an engine.
"""

import json
import logging
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    layerwise,
)
from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from support.loading import load, make_config, reload_weights
from vllm_nemotron_vl.model_executor.models import nemotron_vl_reload

TOWER = "vision_model.radio_model."
MEAN, STD = (TOWER + f"input_conditioner.norm_{name}" for name in ("mean", "std"))
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


@pytest.fixture(scope="module")
def tensors(checkpoint) -> dict[str, torch.Tensor]:
    """Of the checkpoint that is served first."""
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def others(tensors) -> dict[str, torch.Tensor]:
    """Of another one: all values differ."""
    return {name: tensor + 0.25 for name, tensor in tensors.items()}


@pytest.fixture
def write(checkpoint, tmp_path):
    """A function that makes a checkpoint of some tensors."""

    def make(name: str, tensors: dict, suffix: str = ".safetensors"):
        folder = tmp_path / name
        ignored = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(checkpoint, folder, ignore=ignored)
        if suffix == ".bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, folder / "model.safetensors")
        return str(folder)

    return make


@pytest.fixture
def start():
    """A function that loads a checkpoint, and returns the model and its reload."""

    def load_it(checkpoint, runner=RunnerV1, pack_weights=True, **options):
        config = make_config(checkpoint, "float32", **options)
        with set_current_vllm_config(config), torch.inference_mode(False):
            model = load(config, pack_weights)
        return model, partial(reload_weights, config, model, runner)

    with torch.inference_mode():
        yield load_it


def state(model) -> dict[str, torch.Tensor]:
    """All weights. vLLM's CPU kernels empty those that they pack; then products."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    found = {name: tensor.clone() for name, tensor in found.items()}
    for name, layer in model.named_modules():
        weight = found.get(f"{name}.weight")
        if weight is not None and not weight.numel():
            sizes = ("input_size_per_partition", "embedding_dim")
            (width,) = (size for key in sizes if (size := getattr(layer, key, None)))
            x = torch.arange(2.0 * width).sin().view(2, width)
            found[f"{name}.weight"] = layer.quant_method.apply(layer, x)
    return found


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def in_block(name: str) -> bool:
    return ".blocks.1." in name


@pytest.mark.parametrize("runner", [RunnerV1, RunnerV2])
def test_a_reload_from_files_is_all_or_nothing(
    start, checkpoint, others, write, runner
):
    model, reload = start(checkpoint, runner)
    before = state(model)
    block = {name: t for name, t in others.items() if not in_block(name)}
    half = {name: t for name, t in others.items() if name != "mlp1.1.weight"}
    shape = others | {"mlp1.0.bias": torch.zeros(7)}
    damaged = write("damaged", others)
    with open(f"{damaged}/model.safetensors", "r+b") as file:
        file.write(b"\xff" * 8)
    truncated = write_shards(write("truncated", {}), others)
    with open(f"{truncated}/model-2.safetensors", "r+b") as file:
        file.truncate(200_000)  # its header is whole
    twice = write("twice", others)
    save_file({"mlp1.1.weight": others["mlp1.1.weight"]}, f"{twice}/old.safetensors")
    # Its model.safetensors is whole, and not in the index.
    index = write_shards(write("index", others), block)
    for path, cause in (
        (write("block", block), r"lacks 12 of \d+ tensors: .*blocks\.1\."),
        (write("block in pickle", block, ".bin"), r"lacks 12 of \d+ tensors"),
        (write("half of a layer", half), r"lacks 1 of \d+ tensors: mlp1\.1\.weight"),
        (write("half in pickle", half, ".bin"), r"lacks 1 of \d+ tensors"),
        (write("shape", shape), r"'mlp1\.0\.bias' .* shape \(7,\)"),
        (write("nothing", {}), "lacks"),
        (damaged, "is damaged"),
        (truncated, "is damaged"),
        (twice, r"'mlp1\.1\.weight' occurs 2 times"),
        (index, r"lacks 12 of \d+ tensors"),
        (f"{checkpoint}/none", None),
    ):
        with pytest.raises(Exception, match=cause):
            reload(weights_path=path)
        assert changed(before, state(model)) == set(), path
    expected, _ = start(write("again", others))
    leftover = write_shards(write("leftover", {"old": torch.zeros(1)}), others)
    for path in (write("whole", others), write("pickle", others, ".bin"), leftover):
        reload(weights_path=path)
        assert changed(state(expected), state(model)) == set()
        reload()  # from the same files
        assert changed(state(expected), state(model)) == set()
        reload(weights_path=str(checkpoint))
        assert changed(before, state(model)) == set()


def write_shards(folder: str, tensors: dict[str, torch.Tensor]) -> str:
    """Add tensors in two files, and an index that names these alone."""
    names = sorted(tensors)
    half = len(names) // 2
    index = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, f"{folder}/{file}")
        index |= dict.fromkeys(part, file)
    with open(f"{folder}/model.safetensors.index.json", "w") as target:
        json.dump({"metadata": {}, "weight_map": index}, target)
    return folder


def test_an_error_in_the_middle_leaves_whole_layers(
    start, checkpoint, others, write, monkeypatch
):
    """A whole checkpoint fixes it, and after it nothing of the error is left."""
    model, reload = start(checkpoint)
    before = state(model)
    path = write("others", others)
    expected, _ = start(path)
    replaced = changed(before, state(expected))
    readings = []

    def read(self, config, model, get_all_weights=DefaultModelLoader.get_all_weights):
        def get_all_weights_and_fail():
            readings.append(path)
            for name, tensor in get_all_weights(self, config, model):
                if len(readings) == 2 and name == "mlp1.1.weight":
                    raise OSError("The disk is gone.")
                yield name, tensor

        return get_all_weights_and_fail()

    with monkeypatch.context() as patches:
        patches.setattr(DefaultModelLoader, "get_all_weights", read)
        patches.setattr(nemotron_vl_reload, "are_of_files", lambda weights: True)
        with pytest.raises(RuntimeError, match="disk is gone. Some layers may"):
            reload(weights_path=path)
    assert len(readings) == 2
    found = changed(before, state(model))
    assert found and found < replaced
    for name in replaced:
        layer, _, kind = name.rpartition(".")
        if kind == "bias":
            assert (name in found) == (f"{layer}.weight" in found), name
    assert changed(state(expected), state(model)) == replaced - found
    half = {name: t for name, t in others.items() if name != "mlp1.3.weight"}
    with pytest.raises(ValueError, match="lacks 1 of"):
        reload(weights_path=write("half", half))
    assert changed(before, state(model)) == found
    reload(weights_path=path)
    assert changed(state(expected), state(model)) == set()


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


def test_the_statistics_of_the_former_files_do_not_stay(
    start, checkpoint, tensors, write
):
    own = {MEAN: torch.full((3, 1, 1), 0.5), STD: torch.full((3, 1, 1), 0.25)}
    model, reload = start(write("own", tensors | own))
    without = {name: t for name, t in tensors.items() if name not in own}
    path = write("without", without)
    expected, _ = start(path)
    assert changed(state(model), state(expected)) == {
        "input_conditioner.scale",
        "input_conditioner.shift",
    }
    reload(weights_path=path)
    assert changed(state(model), state(expected)) == set()


@pytest.mark.parametrize("statistics", [True, False])
def test_a_reload_says_nothing_of_layers_that_it_replaces(
    start, checkpoint, tensors, write, monkeypatch, statistics
):
    kept = {n: t for n, t in tensors.items() if statistics or n not in (MEAN, STD)}
    _, reload = start(write("kept", kept))
    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(
        handler, "emit", lambda record: lines.append(record.getMessage())
    )
    monkeypatch.setattr(layerwise.logger, "handlers", [handler])
    reload()
    # vLLM computes the frequencies of positions, and warns of them for every model.
    assert {*lines} <= {"Llama3RotaryEmbedding: Failed to load weights"}
    lines.clear()
    with pytest.raises(ValueError, match="lacks"):
        reload(weights_path=write("few", {MEAN: tensors[MEAN]}))
    assert lines == []


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
