"""What the process that `support.forked` forks does before its first fork.

It imports what engines and servers would import after it, and finds out which vector
instructions compiled functions may use: PyTorch starts ten processes for that. What it
has made until then is no garbage. The forks do not look for garbage there: that takes
half a second of a core each time, and copies the memory.
"""

import contextlib
import gc
from importlib import import_module

# A release of vLLM or PyTorch may lack some. An engine that needs one tells the error.
NAMES = [
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.distributed.device_communicators.cpu_communicator",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.auto_awq",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.layers.quantization.quark.quark",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm_nemotron_vl.model_executor.models.nemotron_vl",
    "vllm_nemotron_vl.model_executor.models.nemotron_vl_retrieval",
    "vllm_nemotron_vl.model_executor.models.nemotron_vl_video",
    "vllm_nemotron_vl.plugins.nemotron_vl",
    "vllm_nemotron_vl.renderers.nemotron_vl",
    "vllm_nemotron_vl.renderers.nemotron_vl_retrieval",
    "vllm_nemotron_vl.renderers.nemotron_vl_video",
    "nemotron_vl.checkpoints.inspection",
    "nemotron_vl.verify.worker",
    # What `torch.compile` imports first.
    "sympy.tensor.tensor",
    "torch._dynamo.backends.inductor",
    "torch._export.db.logging",
    "torch._inductor.codegen.cpp_wrapper_gpu",
    "torch._inductor.codegen.cuda_combined_scheduling",
    "torch._inductor.codegen.halide",
    "torch._inductor.codegen.pallas",
    "torch.distributed.tensor.experimental",
    "torch.export._trace",
]
gc.disable()
for name in NAMES:
    with contextlib.suppress(Exception):
        import_module(name)
with contextlib.suppress(Exception):
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    pick_vec_isa()
gc.enable()
gc.freeze()
