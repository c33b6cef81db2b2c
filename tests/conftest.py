"""Shared by all tests: environment variables, checkpoints, images and engines."""

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Allows LLM.apply_model to send functions of the tests to the workers.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")

import pytest
from PIL import Image

from vllm_nemotron_vl.assets.nemotron_vl import tiny_checkpoint
from vllm_nemotron_vl.config import nemotron_vl_cpu
from vllm_nemotron_vl.entrypoints.nemotron_vl.random_checkpoint import (
    make_checkpoint,
)

# Set by model_runner_v2/test_model_runner_v2.py, which runs tests again on V2.
RUNNER_V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"

ENGINE_OPTIONS = dict(
    enforce_eager=True,
    max_model_len=2048,
    max_num_seqs=8,
    limit_mm_per_prompt={"image": 3},
    mm_processor_kwargs={"resize": "exact"},  # the reference resizes this way
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of random weights: 64-pixel tiles of 4 tokens, at most 12 tiles."""
    path = tmp_path_factory.mktemp("checkpoint") / "random"
    make_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The embedded checkpoint, which can read: 64-pixel tiles of 4 tokens."""
    return Path(tiny_checkpoint())


@pytest.fixture
def native_products(monkeypatch):
    """Load models as on a CPU with bfloat16 and float16 instructions."""
    flags = frozenset(["avx512_bf16", "avx512_fp16"])
    monkeypatch.setattr(nemotron_vl_cpu, "processor_flags", lambda: flags)


@pytest.fixture
def emulated_products(monkeypatch):
    """Load models as on a CPU that emulates bfloat16 and float16 products."""
    flags = frozenset(["avx2"])
    monkeypatch.setattr(nemotron_vl_cpu, "processor_flags", lambda: flags)


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photograph of 600x400 pixels."""
    import skimage.data

    return Image.fromarray(skimage.data.coffee())


@pytest.fixture(scope="session")
def page() -> Image.Image:
    """A scanned page of text of 384x191 grey pixels."""
    import skimage.data

    return Image.fromarray(skimage.data.page())


def _is_runner_v2(worker) -> bool:
    classes = type(worker.model_runner).__mro__
    return "vllm.v1.worker.gpu.model_runner" in {c.__module__ for c in classes}


def _engines():
    """Yield a function that starts engines; shut them all down afterwards."""
    from vllm import LLM
    from vllm.config.kernel import KernelConfig

    engines = []

    def start(model: Path, **options) -> LLM:
        if RUNNER_V2 and hasattr(KernelConfig, "enable_jit_warmup"):
            # With compiled models, vLLM's warm-up runs its kernel for top-k and top-p,
            # which Triton's interpreter cannot: `tl.range` yields Python integers.
            options["kernel_config"] = {"enable_jit_warmup": False}
        engines.append(LLM(str(model), **{**ENGINE_OPTIONS, **options}))
        assert set(engines[-1].collective_rpc(_is_runner_v2)) == {RUNNER_V2}
        return engines[-1]

    yield start
    while engines:
        engines.pop().llm_engine.engine_core.shutdown()
    gc.collect()


@pytest.fixture(scope="module")
def make_llm():
    """Start engines that run until the module's tests are done."""
    yield from _engines()


@pytest.fixture
def start_llm():
    """Start engines that run until the test is done."""
    yield from _engines()
