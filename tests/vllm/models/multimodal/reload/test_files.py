"""Weights are replaced from files while a model serves: all of them, or none."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from vllm.model_executor.model_loader import DefaultModelLoader
from vllm.model_executor.model_loader.reload import layerwise
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from support.reloading import MEAN, STD, changed, in_block, state
from vllm_nemotron_vl.model_executor.models import nemotron_vl_reload


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


@pytest.mark.parametrize("trainer", [False, True])
def test_a_kernel_with_an_address_of_scales_takes_no_new_weights(
    start, checkpoint, others, write, trainer
):
    """That of INT8 on most CPUs, which has no attribute `weight` after a reload."""
    model, reload = start(checkpoint)
    layer = model.language_model.model.layers[0].mlp.down_proj
    layer.scheme = SimpleNamespace(kernel=SimpleNamespace(dnnl_handler=None))
    layer.weight = None
    before = state(model)
    given = {"weights_path": write("whole", others)}
    if trainer:
        given = {"weights_iterator": iter(others.items())}
    for _ in range(2):
        with pytest.raises(ValueError, match="takes no new weights"):
            reload(**given)
        assert changed(before, state(model)) == set()
        assert layer.weight is None


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
