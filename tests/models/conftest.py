"""Models built inside the test process, without an engine."""

import contextlib
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def load_model():
    """Load a checkpoint as a worker would, on one rank."""
    from vllm.config import set_current_vllm_config

    from support.loading import load, make_config

    contexts = contextlib.ExitStack()

    def load_checkpoint(
        checkpoint: Path, dtype: str = "float32", pack_weights: bool = True, **options
    ):
        config = make_config(checkpoint, dtype, **options)
        contexts.enter_context(set_current_vllm_config(config))  # for its forward
        return load(config, pack_weights)

    with contexts, torch.inference_mode():
        yield load_checkpoint
