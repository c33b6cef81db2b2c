"""Schemes that vLLM cannot run on this CPU are refused when an engine starts."""

import pytest

from support.loading import make_config
from support.quantised import AWQ, FP8, GPTQ, int8_config
from vllm_nemotron_vl.model_executor.models import config as model_config


@pytest.fixture
def lacks_int4_kernel(monkeypatch):
    """Act like a build of vLLM without the kernel that GPTQ and AWQ need."""
    monkeypatch.setattr(model_config, "has_int4_kernel", lambda: False)


@pytest.mark.parametrize(("scheme", "name"), [(GPTQ, "GPTQ"), (AWQ, "AWQ")])
def test_gptq_and_awq_are_refused_without_their_kernel(
    tiny, with_quantisation, lacks_int4_kernel, scheme, name
):
    with pytest.raises(ValueError, match=f"no kernel for {name} .cpu_gemm_wna16"):
        make_config(with_quantisation(tiny, scheme), "float16")


@pytest.mark.parametrize("nested", [False, True], ids=["whole", "language model"])
def test_4_bit_compressed_tensors_are_refused_without_the_kernel(
    tiny, with_quantisation, lacks_int4_kernel, nested
):
    config = int8_config(format="pack-quantized")
    scheme = config["config_groups"]["group_0"]
    scheme["weights"] |= {"num_bits": 4, "strategy": "group", "group_size": 32}
    scheme["input_activations"] = None
    folder = with_quantisation(tiny, config, nested)
    with pytest.raises(ValueError, match="no kernel for 4-bit compressed-tensors"):
        make_config(folder, "float16")


@pytest.mark.parametrize("scheme", [{}, int8_config(), FP8], ids=["no", "int8", "fp8"])
def test_other_checkpoints_are_served_without_the_kernel(
    tiny, with_quantisation, lacks_int4_kernel, scheme
):
    folder = with_quantisation(tiny, scheme) if scheme else tiny
    assert make_config(folder, "bfloat16")


@pytest.mark.parametrize("amx", [False, True])
def test_int8_in_float32_is_refused_with_amx(tiny, with_quantisation, monkeypatch, amx):
    """vLLM has another kernel there, whose error would end the engine."""
    monkeypatch.setattr(model_config, "has_amx", lambda: amx)
    int8 = with_quantisation(tiny, int8_config())
    assert make_config(int8, "bfloat16")
    assert make_config(tiny, "float32")
    if amx:
        with pytest.raises(ValueError, match="AMX.*--dtype bfloat16"):
            make_config(int8, "float32")
    else:
        assert make_config(int8, "float32")
