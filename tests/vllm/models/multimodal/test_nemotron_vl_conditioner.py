"""The input conditioner in PyTorch and with vLLM's Triton kernel for GPUs."""

import pytest
import torch
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON
from vllm.utils.torch_utils import set_default_torch_dtype

from vllm_nemotron_vl.model_executor.models.nemotron_vl_tower import (
    InputConditioner,
)

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def pixels(tiles: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tiles)
    shape = (tiles, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def named(statistics: dict[str, list[float]]) -> list[tuple[str, torch.Tensor]]:
    """As a checkpoint has them."""
    prefix = "vision_model.radio_model.input_conditioner."
    return [(prefix + name, torch.tensor(v)) for name, v in statistics.items()]


@pytest.mark.skipif(
    not HAS_TRITON, reason="vLLM finds no usable Triton on this machine"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64), (2, 7, 5), (1, 512, 512)])
def test_the_kernel_equals_the_native_form(monkeypatch, dtype, shape):
    conditioner = InputConditioner(MEAN, STD, dtype)
    cases = [
        pixels(*shape),
        pixels(*shape) / 255,
        (pixels(*shape) / 255).to(dtype),
        pixels(*shape).transpose(2, 3),  # not contiguous
    ]
    native = [conditioner(case) for case in cases]
    monkeypatch.setattr(current_platform, "is_cuda_alike", lambda: True)
    for case, expected in zip(cases, native, strict=True):
        found = conditioner(case)
        assert found.dtype == dtype
        assert found.shape == case.shape
        torch.testing.assert_close(found, expected)


def test_the_statistics_are_reloaded_with_vllms_reload():
    """It puts the layer on the meta device while weights are loaded."""
    conditioner = InputConditioner(MEAN, STD, torch.float32)
    tensor = conditioner.scale
    record_metadata_for_reloading(conditioner)
    initialize_layerwise_reload(conditioner)
    other = {"norm_mean": [0.1, 0.2, 0.3], "norm_std": [0.5, 0.6, 0.7]}
    assert not list(conditioner.load_statistics(named(other)))
    finalize_layerwise_reload(conditioner, None)
    expected = InputConditioner(*other.values(), torch.float32)
    assert torch.equal(conditioner.scale, expected.scale)
    assert torch.equal(conditioner.shift, expected.shift)
    assert conditioner.scale is tensor  # a captured graph still reads it


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["norm_mean", "norm_std"])
def test_one_statistic_leaves_the_other(name, whole):
    """A whole checkpoint without it means the default, a part what is there."""
    conditioner = InputConditioner(MEAN, STD, torch.float32)
    stored = {"norm_mean": [0.1, 0.2, 0.3], "norm_std": [0.5, 0.6, 0.7]}
    list(conditioner.load_statistics(named(stored)))
    stored = {"norm_mean": MEAN, "norm_std": STD} if whole else stored
    sent = {name: [0.9, 0.8, 0.4]}
    list(conditioner.load_statistics(named(sent), whole))
    expected = InputConditioner(*(stored | sent).values(), torch.float32)
    torch.testing.assert_close(conditioner.scale, expected.scale)
    torch.testing.assert_close(conditioner.shift, expected.shift)


def test_the_statistics_are_float32():
    with set_default_torch_dtype(torch.bfloat16):  # as vLLM builds models
        conditioner = InputConditioner(MEAN, STD, torch.bfloat16)
    scale = 1 / (255 * torch.tensor(STD, dtype=torch.float64))
    assert torch.allclose(conditioner.scale.double(), scale, rtol=1e-6)
    assert conditioner.scale.dtype == conditioner.shift.dtype == torch.float32
