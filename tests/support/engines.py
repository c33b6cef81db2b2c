"""Start engines that answer as vLLM's do, in fewer processes.

Each process of an engine takes 15 s to import vLLM. On CPUs vLLM gives an engine of
one rank two processes, a core and a worker; here one process is both, as on GPUs. None
is started in the test process: one that followed other tests there gave wrong tokens.
"""

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

from nemotron_vl.checkpoints.inspection import PARTS

from .forked import forked_processes

# Set by model_runner_v2/test_model_runner_v2.py, which runs tests again on V2.
RUNNER_V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"

# An executor without a worker process. vLLM replaces its short name, "uni", on CPUs.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"

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


def engines() -> Iterator[Callable[..., "LLM"]]:
    """Yield a function that starts engines; shut them all down afterwards.

    The function takes vLLM's options, and `worker_process`: whether an engine of one
    rank has a process for its worker.
    """
    from vllm import LLM
    from vllm.config.kernel import KernelConfig

    started: list[LLM] = []

    def start(model: Path, worker_process: bool = False, **options) -> LLM:
        ranks = {"tensor_parallel_size", "pipeline_parallel_size"}
        if not worker_process and ranks.isdisjoint(options):
            options["distributed_executor_backend"] = ONE_PROCESS
        if RUNNER_V2 and hasattr(KernelConfig, "enable_jit_warmup"):
            # With compiled models, vLLM's warm-up runs its kernel for top-k and top-p,
            # which Triton's interpreter cannot: `tl.range` yields Python integers.
            options["kernel_config"] = {"enable_jit_warmup": False}
        started.append(LLM(str(model), **{**OPTIONS, **options}))
        assert set(started[-1].collective_rpc(_is_runner_v2)) == {RUNNER_V2}
        return started[-1]

    with forked_processes():
        yield start
    while started:
        started.pop().llm_engine.engine_core.shutdown()
    gc.collect()


def generate(llm: "LLM", requests, sampling: "SamplingParams", **options):
    """The outputs of one batch of prompts, each with its images."""
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": images} if images else None}
        for text, images in requests
    ]
    return llm.generate(prompts, sampling, use_tqdm=False, **options)


def answers(llm: "LLM", requests, sampling, **options) -> list[list[int]]:
    """The tokens of each answer; arguments as of `generate`."""
    outputs = generate(llm, requests, sampling, **options)
    return [list(output.outputs[0].token_ids) for output in outputs]


def count_parameters(model) -> dict[str, int]:
    """Count the parameters of each part.

    Weights of linear layers are computed from the layer's sizes, because vLLM's
    CPU kernels empty the weights that they pack.
    """
    from vllm.model_executor.layers.linear import LinearBase

    counts: Counter[str] = Counter()
    for name, module in model.named_modules():
        part = next((p for p, prefix in PARTS.items() if name.startswith(prefix)), "")
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, LinearBase):
            own.pop("weight")
            inputs = getattr(module, "input_size_per_partition", module.input_size)
            outputs = getattr(module, "output_size_per_partition", module.output_size)
            counts[part] += inputs * outputs
        counts[part] += sum(parameter.numel() for parameter in own.values())
    return {part: counts[part] for part in PARTS}


def tower_calls(llm: "LLM", start: bool = False) -> int:
    """How often the tower has encoded images since the count was started."""

    def count(module, arguments, output) -> None:
        module.calls += 1

    def attach(model) -> int:
        tower = model.vision_model
        if start:
            tower.calls = 0
            tower.register_forward_hook(count)
        return tower.calls

    (calls,) = llm.apply_model(attach)
    return calls
