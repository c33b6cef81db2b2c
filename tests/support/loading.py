"""Load a model in this process as a worker does, without an engine."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    init_distributed_environment,
    initialize_model_parallel,
    model_parallel_is_initialized,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype


def make_config(checkpoint: Path, dtype: str, **options) -> VllmConfig:
    defaults = dict(enforce_eager=True, max_model_len=2048)
    return EngineArgs(
        model=str(checkpoint), dtype=dtype, **{**defaults, **options}
    ).create_engine_config()


def start_ranks(config: VllmConfig) -> None:
    """Make this process the only rank, unless it is a rank already."""
    with set_current_vllm_config(config):
        if not model_parallel_is_initialized():
            rendezvous = Path(tempfile.mkdtemp()) / "file"
            init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
            initialize_model_parallel()


def reload_weights(config: VllmConfig, model, runner: type, **options) -> None:
    """Call the function of one of the model runners, on a model without an engine."""
    own = SimpleNamespace(
        vllm_config=config,
        model_config=config.model_config,
        load_config=config.load_config,
        lora_config=None,
        get_model=lambda: model,
        reset_lora_state=lambda: None,
        reset_encoder_cache=lambda: None,
        reset_mm_cache=lambda: None,
    )
    with set_current_vllm_config(config):
        runner.reload_weights(own, **options)


def load(config: VllmConfig, pack_weights: bool = True) -> torch.nn.Module:
    """Load the model of a configuration on one rank.

    Without `pack_weights` the parameters keep their values: vLLM's CPU kernels
    empty the parameters that they pack.
    """
    start_ranks(config)
    with set_current_vllm_config(config):
        loader = get_model_loader(config.load_config)
        if pack_weights:
            model = loader.load_model(
                vllm_config=config, model_config=config.model_config
            )
        else:
            with set_default_torch_dtype(config.model_config.dtype):
                model = initialize_model(config)
            loader.load_weights(model, config.model_config)
    return model.eval().requires_grad_(False)
