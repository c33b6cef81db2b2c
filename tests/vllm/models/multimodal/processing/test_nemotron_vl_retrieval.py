"""Processing for the models that find and rank pages, beside vLLM's in-tree one."""

import json
import random
import shutil

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY

from support.noise import noise
from support.processing import SIZES, pixels, process

_RANDOM = random.Random(0)
RANDOM_SIZES = [(_RANDOM.randint(1, 900), _RANDOM.randint(1, 900)) for _ in range(40)]


def in_tree(ours):
    """The processor that vLLM makes for the same configuration without the plugin."""
    from vllm.model_executor.models import nemotron_vl

    name = "LlamaNemotronVLForEmbedding"
    if not hasattr(nemotron_vl, name):
        pytest.skip("laid over vLLM, this package's file replaces the in-tree one")
    in_tree = getattr(nemotron_vl, name)
    on_device = ours.info.ctx.get_mm_config().mm_device_do_normalize
    if on_device and not getattr(in_tree, "supports_mm_device_do_normalize", False):
        pytest.skip("in this release the in-tree model takes no pixels as uint8")
    return in_tree._processor_factory.build_processor(ours.info.ctx)


@pytest.fixture
def make(embed_checkpoint):
    def make_processor(folder=embed_checkpoint, **options):
        config = EngineArgs(model=str(folder), **options).create_model_config()
        return MULTIMODAL_REGISTRY.create_processor(config)

    return make_processor


@pytest.mark.parametrize("on_device", [True, False])
def test_pixels_and_tokens_are_those_of_the_in_tree_model(make, on_device):
    """Bit by bit, as uint8 and normalised on the host."""
    ours = make(mm_device_do_normalize=on_device, dtype="float32")
    theirs = in_tree(ours)
    for number, size in enumerate([*SIZES, *RANDOM_SIZES]):
        image = noise(*size, seed=number)
        prompt = "passage: <image> text"
        found = process(ours, prompt, [image])
        expected = process(theirs, prompt, [image])
        assert torch.equal(pixels(found), pixels(expected)), size
        assert found["prompt_token_ids"] == expected["prompt_token_ids"], size
    assert pixels(found).dtype == (torch.uint8 if on_device else torch.float32)


def edited(folder, tmp_path, **processor):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "processor_config.json").write_text(json.dumps(processor))
    return copy


@pytest.mark.parametrize(
    ("settings", "tiles"),
    [
        ({"max_input_tiles": 6, "use_thumbnail": True}, 7),
        ({"max_input_tiles": 2}, 3),
        ({"max_input_tiles": 2, "use_thumbnail": False}, 2),
        ({}, 1),  # in-tree, config.json's own limit of tiles is not read either
    ],
)
def test_tiles_are_those_of_processor_config(
    make, embed_checkpoint, tmp_path, settings, tiles
):
    processor = make(edited(embed_checkpoint, tmp_path, **settings))
    result = process(processor, "<image>", [noise(384, 256)])
    assert len(pixels(result)) == tiles
    assert processor.info.get_max_image_tokens() == tiles * 4


def test_settings_of_the_engine_come_first(make):
    processor = make(mm_processor_kwargs={"max_dynamic_patch": 3, "resize": "fast"})
    result = process(processor, "<image>", [noise(384, 128)])
    assert len(pixels(result)) == 4
    with pytest.raises(VLLMValidationError, match="one of 'exact', 'fast'"):
        process(processor, "<image>", [noise(64, 64)], resize="hf")


def test_an_image_that_is_too_large_is_refused(make, monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    with pytest.raises(VLLMValidationError, match="at most 1000 pixels"):
        process(make(), "<image>", [noise(64, 64)])
