"""Two checkpoints that differ in all values, and a model that is reloaded.

The model runners' own functions reload, on a model without an engine.
"""

import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.config import set_current_vllm_config
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from support.loading import load, make_config, reload_weights


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
