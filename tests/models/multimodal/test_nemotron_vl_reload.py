"""Weights are replaced while a model serves: from files, in chunks, in sparse patches.

The model runners' own functions reload, on a model without an engine.
"""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    layerwise,
)
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from support.loading import load, make_config

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

    def load_it(checkpoint, runner=RunnerV1, pack_weights=True):
        config = make_config(checkpoint, "float32")
        with set_current_vllm_config(config):
            model = load(config, pack_weights)
        own = SimpleNamespace(
            vllm_config=config,
            model_config=config.model_config,
            load_config=config.load_config,
            lora_config=None,
            get_model=lambda: model,
            reset_lora_state=lambda: None,
            reset_encoder_cache=lambda: None,
            reset_mm_cache=lambda: None,
        )

        def reload(**options) -> None:
            with set_current_vllm_config(config):
                runner.reload_weights(own, **options)

        return model, reload

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
    shape = others | {"mlp1.0.bias": torch.zeros(7)}
    damaged = write("damaged", others)
    with open(f"{damaged}/model.safetensors", "r+b") as file:
        file.write(b"\xff" * 8)
    for path, cause in (
        (write("block", block), r"lacks 12 of \d+ tensors: .*blocks\.1\."),
        (write("shape", shape), r"'mlp1\.0\.bias' .* shape \(7,\)"),
        (write("nothing", {}), "lacks"),
        (damaged, "is damaged"),
        (f"{checkpoint}/none", None),
    ):
        with pytest.raises(Exception, match=cause):
            reload(weights_path=path)
        assert changed(before, state(model)) == set(), path
    reload(weights_path=write("whole", others))
    expected, _ = start(write("again", others))
    assert changed(state(expected), state(model)) == set()
    reload()  # from the same files
    assert changed(state(expected), state(model)) == set()


def test_files_without_headers_are_found_incomplete_later(
    start, checkpoint, others, write
):
    """It says so, and a whole checkpoint mends it."""
    model, reload = start(checkpoint)
    block = {name: t for name, t in others.items() if not in_block(name)}
    with pytest.raises(ValueError, match=r"lacks 12 .* already: restart the engine"):
        reload(weights_path=write("block", block, ".bin"))
    reload(weights_path=write("whole", others, ".bin"))
    expected, _ = start(write("again", others))
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
    monkeypatch.setattr(
        layerwise.logger, "warning", lambda line, *a: lines.append(line % a)
    )
    reload()
    # vLLM computes the frequencies of positions, and warns of them for every model.
    assert {*lines} <= {"Llama3RotaryEmbedding: Failed to load weights"}


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
    assert changed(state(model), state(expected)) == set()


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
