"""Models loaded in the test process, without an engine."""

import contextlib
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def load_model():
    """A function that loads a checkpoint on one rank, as a worker does."""
    from vllm.config import set_current_vllm_config

    from support.loading import load, make_config

    contexts = contextlib.ExitStack()

    def load_checkpoint(
        checkpoint: Path, dtype: str = "float32", pack_weights: bool = True, **options
    ):
        config = make_config(checkpoint, dtype, **options)
        contexts.enter_context(set_current_vllm_config(config))  # forward needs it
        with torch.inference_mode(False):
            return load(config, pack_weights)

    with contexts, torch.inference_mode():
        yield load_checkpoint
