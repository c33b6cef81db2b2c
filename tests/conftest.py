"""Shared by all tests: environment variables, checkpoints, images and engines."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# After 5 s, vLLM closes an idle connection just as a slow client uses it again.
os.environ.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "120")
# Allows LLM.apply_model to send functions of the tests to the workers.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
# More threads than one make models as small as these slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # vLLM would bind the engines of all workers to the same core.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import pytest
from PIL import Image

from nemotron_vl.checkpoints.embedded import tiny_checkpoint, tiny_finder, tiny_ranker
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.checkpoints.random_retrieval import make_retrieval_checkpoint
from support.engines import engines
from support.workers import workers_here
from vllm_nemotron_vl.config import nemotron_vl_cpu


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Leave out of collections of garbage what is imported to collect the tests.

    Each would look at a million objects, and vLLM asks for one with each model.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_thawed() -> Iterator[None]:
    """An engine that ends in this process thaws what was imported for all tests."""
    yield
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest file first: at the end it would keep one core alone."""
    items.sort(key=lambda item: "vllm/quantization/" not in item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return workers_here()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of random weights: 64-pixel tiles of 4 tokens, at most 12 tiles."""
    path = tmp_path_factory.mktemp("checkpoint") / "random"
    make_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def embed_checkpoint(tmp_path_factory) -> Path:
    """Embeds questions and pages; random weights, 64-pixel tiles of 4 tokens."""
    path = tmp_path_factory.mktemp("checkpoint") / "embed"
    make_retrieval_checkpoint(path, ranks=False)
    return path


@pytest.fixture(scope="session")
def rerank_checkpoint(tmp_path_factory) -> Path:
    """Ranks pages for a question, as `embed_checkpoint`."""
    path = tmp_path_factory.mktemp("checkpoint") / "rerank"
    make_retrieval_checkpoint(path, ranks=True)
    return path


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The embedded checkpoint, which can read."""
    return Path(tiny_checkpoint())


@pytest.fixture(scope="session")
def tiny_embed() -> Path:
    """The embedded checkpoint that finds pages by the numbers that they show."""
    return Path(tiny_finder())


@pytest.fixture(scope="session")
def tiny_rerank() -> Path:
    """The embedded checkpoint that ranks such pages."""
    return Path(tiny_ranker())


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


@pytest.fixture(scope="module")
def make_llm():
    """Start engines that run until the module's tests are done."""
    yield from engines()


@pytest.fixture
def start_llm():
    """Start engines that run until the test is done."""
    yield from engines()
