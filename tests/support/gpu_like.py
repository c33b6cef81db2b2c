"""vLLM's worker for CPUs, with what its worker for GPUs does and that one leaves out.

An engine gets it with ``worker_cls="support.gpu_like.Worker"``.
"""

import torch
from vllm.distributed import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker

from nemotron_vl.verify.worker import graph_manager
from support.encoder_graphs import capture


class Worker(CPUWorker):
    """Captures graphs of the encoder; runs pipelines without compiling the model;
    on Model Runner V2, engines that only encode have their own runner."""

    most_images = 0  # that one step encoded
    most_adapters = 0  # of those images, none of them counted as one

    def init_device(self) -> None:
        self.adapters: dict[str, str | None] = {}  # of each request
        super().init_device()
        if self.use_v2_model_runner and self.vllm_config.is_mm_encoder_only:
            # GPUs have it; vLLM's worker for CPUs has the one of the whole model.
            from vllm.v1.worker.mm_encoder_model_runner import MMEncoderModelRunner

            MMEncoderModelRunner.warming_up_model = lambda self: None
            self.model_runner = MMEncoderModelRunner(self.vllm_config, self.device)

    def load_model(self, **options) -> None:
        super().load_model(**options)
        runner = self.model_runner
        if manager := getattr(runner, "lora_manager", None):
            # On CPUs, vLLM's kernels read these from memory that nobody has written
            # when the encoder runs before the first request.
            for wrapper in manager._adapter_manager.punica_wrapper_mapping.values():
                wrapper._token_lora_indices.zero_()
        if not get_pp_group().is_first_rank and not self.use_v2_model_runner:
            # vLLM's runner makes them while it warms up a compiled model.
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                runner.max_num_tokens, self.model_config.dtype, self.device
            )

    def execute_model(self, scheduler_output):
        for new in scheduler_output.scheduled_new_reqs:
            name = new.lora_request and new.lora_request.lora_name
            self.adapters[new.req_id] = name
        images = scheduler_output.scheduled_encoder_inputs
        adapters = {self.adapters[request] for request in images}
        count = sum(map(len, images.values()))
        self.most_images = max(self.most_images, count)
        self.most_adapters = max(self.most_adapters, len(adapters))
        return super().execute_model(scheduler_output)

    @torch.inference_mode()
    def compile_or_warm_up_model(self):
        times = super().compile_or_warm_up_model()
        runner = self.model_runner
        if not self.use_v2_model_runner:
            runner._maybe_init_encoder_cudagraph_manager()
        if manager := graph_manager(runner):
            capture(manager)
        return times


def most_together(worker) -> tuple[int, int]:
    """Images, and adapters, of one step at most; for ``llm.collective_rpc``."""
    return worker.most_images, worker.most_adapters


def graph_hits(worker) -> int:
    """Images that were replayed from graphs; for ``llm.collective_rpc``."""
    manager = graph_manager(worker.model_runner)
    return manager.graph_hits if manager else 0  # later pipeline ranks have none


def cached(model) -> int:
    """Tiles that came from the cache; for ``llm.apply_model``."""
    return model.tile_reuse.counts["cached"]
