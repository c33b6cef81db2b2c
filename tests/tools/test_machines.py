"""What docs/machines.md says of vLLM: its defaults, and options that it has."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
from vllm.config import CacheConfig
from vllm.engine import arg_utils
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.third_party import pynvml
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

import machines_table
from capacity.data import Gpu, read_data
from capacity.engine import Assumptions

GPUS = read_data()[1]
COMMANDS = machines_table.commands(machines_table.PAGE.read_text())


@pytest.fixture
def pretend(monkeypatch):
    """Makes vLLM's defaults those of a machine."""
    compiled = "vllm._C_stable_libtorch"  # not in vLLM's build for CPUs
    monkeypatch.setitem(sys.modules, compiled, ModuleType(compiled))
    cuda = importlib.import_module("vllm.platforms.cuda")

    def use(gpu: Gpu | None) -> None:
        total = int(gpu.gib * 2**30) if gpu else 64 * 2**30
        monkeypatch.setattr(
            arg_utils,
            "current_platform",
            SimpleNamespace(
                get_device_total_memory=lambda: nvml_memory(gpu, total),
                get_device_name=lambda: gpu.title if gpu else "cpu",
                is_device_capability=lambda pair: (
                    gpu is not None and pair[0] + pair[1] / 10 == gpu.capability
                ),
                is_tpu=lambda: False,
                is_cpu=lambda: gpu is None,
            ),
        )

    def nvml_memory(gpu: Gpu | None, total: int) -> int:
        """What vLLM makes of NVML, which does not know the memory of a GB10."""

        def info(handle):
            if gpu is GPUS["GB10"]:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return SimpleNamespace(total=total)

        for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex"):
            monkeypatch.setattr(pynvml, name, lambda *args: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", info)
        monkeypatch.setattr(
            cuda, "cuda_get_device_properties", lambda *args: (total,), raising=False
        )
        return cuda.NvmlCudaPlatform.get_device_total_memory()

    return use


@pytest.mark.parametrize("name", [*GPUS, "CPU"])
def test_vllms_defaults(pretend, name):
    pretend(GPUS.get(name))
    tokens, sequences = (
        found[UsageContext.OPENAI_API_SERVER]
        for found in arg_utils.EngineArgs.get_batch_defaults(world_size=1)
    )
    assert tokens == (8192 if name == "H100" else 2048)
    assert sequences == (GPUS[name].max_num_seqs if name in GPUS else 128)


def test_the_share_of_the_memory():
    assert CacheConfig().gpu_memory_utilization == Assumptions().gpu_memory_utilization


@pytest.mark.parametrize("words", [words for _, _, words in COMMANDS])
def test_commands_have_options_that_vllm_knows(words):
    start = words.index("vllm")
    assert words[start + 1] == "serve"
    found = make_arg_parser(FlexibleArgumentParser()).parse_args(words[start + 2 :])
    assert found.max_model_len and found.limit_mm_per_prompt["image"]
