"""From videos and prompts to tiles and tokens, and what an engine reserves for them."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.media import MediaConnector
from vllm.multimodal.processing import ProcessorInputs, TimingContext

from nemotron_vl.verify.reference import Reference
from support.chat import data_url
from support.clips import VIDEO, encoded, noise, numbers
from support.processing import TILE, TOKENS
from vllm_nemotron_vl.config.nemotron_vl_video import DEFAULT_FRAMES
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import NUM_TILES

RECIPES = ["fast", "exact", "hf"]


@pytest.fixture(scope="module")
def make_config(make_config):
    return partial(make_config, hf_overrides=VIDEO)


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor(mm_processor_kwargs={"resize": "exact"})


def process(processor, prompt, videos, cache=None, uuids=None, images=(), **kwargs):
    data = {"video": list(videos), "image": list(images)}
    given = {name: items for name, items in data.items() if items}
    items = processor.info.parse_mm_data(given)
    inputs = ProcessorInputs(
        processor.info.get_tokenizer().encode(prompt),
        items,
        uuids,
        hf_processor_mm_kwargs=kwargs,
        cache=cache,
    )
    return processor.apply(inputs, TimingContext(enabled=False))


def pixels(result) -> torch.Tensor:
    items = result["mm_kwargs"]["video"]
    return torch.cat([item["pixel_values_flat_video"].data for item in items])


def digests(result, field="video_tile_digests", modality="video") -> list[bytes]:
    items = result["mm_kwargs"][modality]
    return [bytes(d) for item in items for d in item[field].data.numpy()]


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (300, 20), (63, 65), (640, 480)])
def test_a_frame_becomes_one_tile_by_the_recipes_of_images(make_processor, size):
    """As an image with one tile, and for "exact" as in the reference."""
    frames = noise(3, *size)
    for recipe in RECIPES:
        options = {"resize": recipe, "dynamic_image_size": False}
        processor = make_processor(mm_processor_kwargs=options)
        found = pixels(process(processor, "<img></img>", [frames]))
        images = processor.info.get_image_processor()(images=frames)
        assert torch.equal(found, images["pixel_values_flat"])
        if recipe == "exact":
            bicubic = Image.Resampling.BICUBIC
            expected = [f.resize((TILE, TILE), bicubic) for f in frames]
            assert np.array_equal(
                found.permute(0, 2, 3, 1), np.stack([*map(np.asarray, expected)])
            )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_gives_the_same_tiles_as_its_frames(make_processor, recipe):
    frames = noise(40)
    processor = make_processor(mm_processor_kwargs={"resize": recipe})
    file, array = (
        process(processor, "<img></img>", [video])
        for video in (encoded(frames), frames)
    )
    assert len(pixels(file)) == DEFAULT_FRAMES
    assert torch.equal(pixels(file), pixels(array))
    assert file["prompt_token_ids"] == array["prompt_token_ids"]
    assert digests(file) == digests(array)


def test_tokens_and_placeholders(processor, checkpoint):
    tokenizer = processor.info.get_tokenizer()
    result = process(processor, "a <img></img> b <img></img>", [noise(2), noise(5)])
    expected = Reference.load(checkpoint).expand(
        "a <img></img> b <img></img>", [], [2, 5]
    )
    assert result["prompt_token_ids"] == tokenizer.encode(expected)
    places = result["mm_placeholders"]["video"]
    assert [place.length for place in places] == [2 * TOKENS, 5 * TOKENS]
    assert [place.get_num_embeds() for place in places] == [2 * TOKENS, 5 * TOKENS]


def test_do_rescale_gives_float_tiles(make_processor):
    options = {"do_rescale": True, "resize": "exact"}
    processor = make_processor(
        mm_device_do_normalize=False, mm_processor_kwargs=options
    )
    found = pixels(process(processor, "<img></img>", [numbers("12")]))
    assert found.is_floating_point() and 0 <= found.min() <= found.max() <= 1


def test_equal_tiles_of_images_and_videos_have_equal_digests(processor):
    source = noise(1, TILE, TILE)[0]
    result = process(
        processor,
        "<img></img><image>",
        [[source, source, *noise(2)]],
        images=[source],
    )
    first, second, other, _ = digests(result)
    (image,) = digests(result, "tile_digests", "image")
    assert first == second == image != other
    assert any(first)


def test_dummy_videos_are_as_large_as_the_largest_and_all_encoded(make_processor):
    for options, frames in (
        ({}, DEFAULT_FRAMES),
        ({"media_io_kwargs": {"video": {"num_frames": 7}}}, 7),
        ({"max_model_len": 30}, 7),  # (30 - 2) // 4
        ({"max_model_len": 4}, 1),
    ):
        processor = make_processor(**options)
        counts = {"image": 1, "video": 1}
        largest = processor.info.get_mm_max_tokens_per_item(9, counts)["video"]
        assert largest == frames * TOKENS
        dummy = processor.get_dummy_mm_inputs({"video": 1})
        (place,) = dummy["mm_placeholders"]["video"]
        assert place.get_num_embeds() == largest
        assert not any(map(any, digests(dummy)))  # zeros: never reused
        # No video of a request that the context can hold is larger.
        result = process(processor, "<img></img>", [encoded(noise(99, 16, 16))])
        context = processor.info.ctx.model_config.max_model_len
        too_long = len(result["prompt_token_ids"]) > context
        assert too_long or len(pixels(result)) == frames


def hashes(processor, *args, **kwargs) -> list[str]:
    return process(processor, *args, **kwargs)["mm_hashes"]["video"]


def test_caches_compare_content_frames_and_recipe(make_processor, processor):
    data = encoded(noise(9))
    one = hashes(processor, "<img></img>", [data])
    assert hashes(processor, "<img></img>", [bytes(data)]) == one
    others = [
        hashes(processor, "<img></img>", [encoded(noise(8))]),
        hashes(make_processor(), "<img></img>", [data]),  # another recipe
        hashes(
            make_processor(
                mm_processor_kwargs={"resize": "exact"},
                media_io_kwargs={"video": {"num_frames": 3}},
            ),
            "<img></img>",
            [data],
        ),
        hashes(processor, "<img></img>", [noise(9)[:-1]]),
        hashes(processor, "<img></img>", [noise(9)[::-1]]),
    ]
    found = [*one, *(other for (other,) in others)]
    assert len({*found}) == len(found)


def test_one_uuid_for_an_image_and_a_video_names_two_things(processor):
    cache = MultiModalProcessorOnlyCache(processor.info.ctx.model_config)
    uuids = {"image": ["same"], "video": ["same"]}
    video, image = [numbers("12")], noise(1)
    for _ in range(2):
        result = process(processor, "<image><img></img>", video, cache, uuids, image)
        names = [*result["mm_hashes"]["image"], *result["mm_hashes"]["video"]]
        assert len({*names}) == 2
        assert "pixel_values_flat" in result["mm_kwargs"]["image"][0]
        assert "pixel_values_flat_video" in result["mm_kwargs"]["video"][0]


def test_an_image_cannot_have_the_name_of_a_video(processor):
    video, image = [numbers("12")], noise(1)
    (name,) = process(processor, "<img></img>", video, uuids={"video": ["a"]})[
        "mm_hashes"
    ]["video"]
    for uuids in ({"image": [name]}, {"image": [name], "video": ["a"]}):
        videos = video if "video" in uuids else []
        prompt = "<image>" + "<img></img>" * len(videos)
        with pytest.raises(VLLMValidationError, match="must not begin with 'video-'"):
            process(processor, prompt, videos, uuids=uuids, images=image)


def test_an_image_keeps_its_name_in_all_engines(make_processor, checkpoint):
    """A reader of an EC connector finds what an encoder stored under the name."""
    config = EngineArgs(model=str(checkpoint)).create_model_config()
    encoders = [make_processor(), MULTIMODAL_REGISTRY.create_processor(config)]
    names = []
    for uuid in (None, "a cat"):
        for encoder in encoders:
            given = {"image": [uuid]}
            stored = process(encoder, "<image>", [], uuids=given, images=noise(1))
            names += stored["mm_hashes"]["image"]
    assert names[0] == names[1] and names[2:] == ["a cat", "a cat"]
    transfer = {"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}
    reader = MULTIMODAL_REGISTRY.create_processor(
        EngineArgs(
            model=str(checkpoint), hf_overrides=VIDEO, ec_transfer_config=transfer
        )
        .create_engine_config()
        .model_config
    )
    for name in names:
        inputs = ProcessorInputs(
            reader.info.get_tokenizer().encode("<image>"),
            reader.info.parse_mm_data({"image": {NUM_TILES: torch.tensor([3])}}),
            {"image": [name]},
        )
        found = reader.apply(inputs, TimingContext(enabled=False))
        assert found["mm_hashes"]["image"] == [name]


def test_another_recipe_for_a_file_is_refused(processor):
    with pytest.raises(VLLMValidationError, match="resize='exact', but .* 'hf'"):
        process(processor, "<img></img>", [encoded(noise(2))], resize="hf")
    process(processor, "<img></img>", [noise(2)], resize="hf")


def test_vllms_connector_uses_our_loader(make_config):
    options = make_config(media_io_kwargs={"video": {"num_frames": 5}})
    kwargs = options.get_multimodal_config().media_io_kwargs
    connector = MediaConnector(media_io_kwargs=kwargs)
    url = data_url(encoded(noise(9)), "video/x-matroska")
    tiles, about = connector.fetch_video(url).media
    assert tiles.shape == (5, 3, TILE, TILE)
    assert about["frames_indices"] == [0, 2, 4, 6, 8]
    assert about["total_num_frames"] == 9
    with pytest.raises(VLLMValidationError, match="none of MP4"):
        connector.fetch_video(data_url(b"ffconcat version 1.0\n", "video/mp4"))
