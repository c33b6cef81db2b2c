"""Processors as engines make them."""

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY


@pytest.fixture(scope="module")
def make_config(checkpoint):
    """A function from options of vLLM to the configuration of a model."""
    return lambda **options: EngineArgs(
        model=str(checkpoint), **options
    ).create_model_config()


@pytest.fixture(scope="module")
def make_processor(make_config):
    return lambda **options: MULTIMODAL_REGISTRY.create_processor(
        make_config(**options)
    )


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor()
