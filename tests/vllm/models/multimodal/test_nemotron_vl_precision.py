"""Which layers of the encoder an online quantisation leaves out."""

from types import SimpleNamespace

import pytest
import torch
from vllm.config.quantization import QuantizationConfigArgs
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.online.base import (
    OnlineQuantizationConfig,
)

from vllm_nemotron_vl.model_executor.models import nemotron_vl_precision as precision

KEPT = ["vision_model.*", "mlp1.*"]


def online(**settings) -> OnlineQuantizationConfig:
    return OnlineQuantizationConfig(QuantizationConfigArgs(**settings))


FP8 = "fp8_per_tensor"


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"linear": FP8}, KEPT),
        ({"linear": FP8, "ignore": ["lm_head"]}, ["lm_head"]),
        ({"targets": {"mlp1.*": FP8}}, []),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_encoder_is_left_out_unless_the_user_chose(settings, ignored, nested):
    config = online(**settings)
    whole = SimpleNamespace(online_quantization_config=config) if nested else config
    precision.keep_encoder_precision(whole)
    assert config.ignored_layers == ignored


class Doubling(torch.nn.Module):
    """A layer whose kernel takes rows only."""

    def __init__(self, quantised: bool) -> None:
        super().__init__()
        plain = UnquantizedLinearMethod()
        method = SimpleNamespace() if quantised else plain
        method.apply = self.double
        self.quant_method = method

    def double(self, layer, x, bias=None):
        self.seen = x.shape
        return 2 * x if bias is None else 2 * x + bias


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_quantised_layers_get_rows_on_cpus_with_amx(monkeypatch, amx, quantised):
    monkeypatch.setattr(precision, "has_amx", lambda: amx)
    layer = Doubling(quantised)
    precision.flatten_quantised_inputs(torch.nn.Sequential(layer), torch.nn.Identity())
    x, bias = torch.arange(24.0).view(2, 3, 4), torch.ones(4)
    assert torch.equal(layer.quant_method.apply(layer, x, bias), 2 * x + 1)
    assert torch.equal(layer.quant_method.apply(layer, x), 2 * x)
    assert layer.seen == ((6, 4) if amx and quantised else (2, 3, 4))
