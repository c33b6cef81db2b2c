"""Start engines: in this process where one rank is enough, else in processes.

Each process of an engine takes 15 s to import vLLM. vLLM allows one engine at a time
in a process: an engine that runs beside others must have processes of its own.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    from vllm import LLM

# Set by model_runner_v2/test_model_runner_v2.py, which runs tests again on V2.
RUNNER_V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"

OPTIONS = dict(
    enforce_eager=True,
    max_model_len=2048,
    max_num_seqs=8,
    limit_mm_per_prompt={"image": 3},
    mm_processor_kwargs={"resize": "exact"},  # the reference resizes this way
)


def _is_runner_v2(worker) -> bool:
    classes = type(worker.model_runner).__mro__
    return "vllm.v1.worker.gpu.model_runner" in {c.__module__ for c in classes}


def _dict_of(value) -> dict:
    found = value.__dict__
    return found if hasattr(found, "get") else {}


def engines() -> Iterator[Callable[..., "LLM"]]:
    """Yield a function that starts engines; shut them all down afterwards.

    The function takes vLLM's options, and `processes`: whether the engine gets
    processes of its own, as vLLM's users have it, also for one rank.
    """
    from vllm import LLM
    from vllm.config.kernel import KernelConfig
    from vllm.triton_utils import dispatcher

    # Each CPU worker looks for vLLM's kernels in all modules that are imported. There
    # it fails on llvmlite, whose library object answers every name with a function.
    dispatcher.vars = _dict_of

    started: list[LLM] = []

    def start(model: Path, processes: bool = False, **options) -> LLM:
        if RUNNER_V2 and hasattr(KernelConfig, "enable_jit_warmup"):
            # With compiled models, vLLM's warm-up runs its kernel for top-k and top-p,
            # which Triton's interpreter cannot: `tl.range` yields Python integers.
            options["kernel_config"] = {"enable_jit_warmup": False}
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes))}
        with mock.patch.dict(os.environ, environment):
            started.append(LLM(str(model), **{**OPTIONS, **options}))
        assert set(started[-1].collective_rpc(_is_runner_v2)) == {RUNNER_V2}
        return started[-1]

    yield start
    while started:
        started.pop().llm_engine.engine_core.shutdown()
    gc.collect()
