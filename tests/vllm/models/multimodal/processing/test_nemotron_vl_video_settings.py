"""Settings of videos that are wrong, or do not fit, are named when an engine starts."""

import re
from functools import partial

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY

from support.clips import VIDEO, numbers
from vllm_nemotron_vl.model_executor.models import config


@pytest.fixture(scope="module")
def make_config(make_config):
    return partial(make_config, hf_overrides=VIDEO)


@pytest.mark.parametrize(
    ("context", "frames", "said"),
    [
        (30, 8, 'than 7 frame(s) will be refused. .*{"video": {"num_frames": 7}}'),
        (30, 7, None),
        (6, 1, None),
        (5, 1, "every video will be refused"),
    ],
)
def test_too_many_frames_for_the_context_are_named_at_start(
    checkpoint, context, frames, said, monkeypatch
):
    lines: list[str] = []
    monkeypatch.setattr(config.logger, "warning", lines.append)
    EngineArgs(
        model=str(checkpoint),
        hf_overrides=VIDEO,
        max_model_len=context,
        media_io_kwargs={"video": {"num_frames": frames}},
    ).create_engine_config()
    found = [line for line in lines if "--max-model-len" in line]
    assert len(found) == (said is not None)
    for line in found:
        assert re.search(said.replace("(s)", r"\(s\)"), line), line


BAD_SETTINGS = {
    "fps": 2,
    "backend": "torchcodec",
    "video_backend": "opencv",
    "tile_size": 8,
    "resize": "hf",
}


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS.items())
def test_an_unknown_setting_is_named_at_start(make_config, name, value):
    with pytest.raises(ValueError, match=f"video.{name} = .* is not supported"):
        make_config(media_io_kwargs={"video": {name: value}})


@pytest.mark.parametrize("value", [0, -1, 1025, "3", 2.5, True, None])
def test_a_wrong_number_of_frames_is_named_at_start(make_config, value):
    with pytest.raises(ValueError, match="num_frames must be a whole number"):
        make_config(media_io_kwargs={"video": {"num_frames": value}})


def test_what_cannot_work_is_refused_at_start(make_config, checkpoint):
    with pytest.raises(ValueError, match="video_pruning_rate = 0.5 is not supported"):
        make_config(video_pruning_rate=0.5)

    def engine(**options):
        args = EngineArgs(model=str(checkpoint), hf_overrides=VIDEO, **options)
        return args.create_engine_config()

    lora = dict(enable_lora=True, enable_tower_connector_lora=True)
    with pytest.raises(ValueError, match="--enable-tower-connector-lora"):
        engine(**lora)
    engine(**lora, limit_mm_per_prompt={"video": 0})
    engine(enable_lora=True)


def test_the_image_architecture_names_the_switch(checkpoint):
    switch = '--hf-overrides \'{"architectures": ["Llama_Nemotron_Nano_VL_Video"]}\''
    model = str(checkpoint)
    for limit in (1, {"count": 2, "num_frames": 4}):
        with pytest.raises(ValueError) as error:
            EngineArgs(
                model=model, limit_mm_per_prompt={"video": limit}
            ).create_model_config()
        assert switch in str(error.value)
    config = EngineArgs(
        model=model, limit_mm_per_prompt={"video": 0}
    ).create_model_config()
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    for ask in (
        lambda: processor.info.validate_num_items("video", 1),
        lambda: processor.info.parse_mm_data({"video": [numbers("12")]}),
    ):
        with pytest.raises(VLLMValidationError) as error:
            ask()
        assert switch in str(error.value)
