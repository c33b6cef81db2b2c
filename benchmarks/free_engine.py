"""An engine of vLLM whose model costs nothing, to measure what is in front of it.

Requests and their tensors reach its scheduler as in any engine. No weights are loaded
and nothing is computed; each answer is the same token, as often as was asked for.
"""

from concurrent.futures import Future
from typing import Any

import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput

TOKEN = 1000

# Prompts must not be cut: a token follows each step.
OPTIONS = (
    "--distributed-executor-backend=free_engine.FreeExecutor",
    "--no-enable-chunked-prefill",
    "--max-num-batched-tokens=65536",
    "--max-num-seqs=64",
    "--no-async-scheduling",
)

# What vLLM's engine asks its workers for, with the answer of the only one.
ANSWERS: dict[str, Any] = {
    "determine_available_memory": 1 << 30,
    "get_supported_tasks": ("generate",),
    "get_supported_kv_cache_layouts": ["NHD", "HND"],
}


class FreeExecutor(Executor):
    """Answers without workers."""

    def _init_executor(self) -> None:
        pass

    def check_health(self) -> None:
        pass

    def get_kv_cache_specs(self):
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=1,
            head_size=8,
            dtype=torch.float16,
        )
        return [{"layer": spec}]

    def compile_or_warm_up_model(self) -> None:
        pass

    def collective_rpc(
        self, method, timeout=None, args=(), kwargs=None, non_block=False
    ):
        return [ANSWERS.get(method)]

    def execute_model(self, scheduler_output: SchedulerOutput, non_block=False):
        ids = [*scheduler_output.num_scheduled_tokens]
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={name: place for place, name in enumerate(ids)},
            sampled_token_ids=[[TOKEN]] * len(ids),
        )
        if not non_block:
            return output
        future: Future[ModelRunnerOutput] = Future()
        future.set_result(output)
        return future
