"""Load a model in this process as a worker does, without an engine."""

import tempfile
from pathlib import Path

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
