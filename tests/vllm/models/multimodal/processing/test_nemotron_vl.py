"""From images and prompts to tiles and tokens."""

import numpy as np
import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.internvl import (
    BaseInternVLDummyInputsBuilder,
    BaseInternVLMultiModalProcessor,
    BaseInternVLProcessingInfo,
)
from vllm.multimodal.cache import MultiModalProcessorOnlyCache

from support.noise import noise
from support.processing import (
    SIZES,
    TILE,
    TOKENS,
    count_image_tokens,
    grid_by_the_rule,
    pixels,
    process,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLProcessor,
)


def test_the_image_only_classes_are_inherited():
    from vllm_nemotron_vl.model_executor.models.nemotron_vl import (
        LlamaNemotronVLChatModel,
    )

    factories = LlamaNemotronVLChatModel._processor_factory
    assert factories.processor.__base__ is BaseInternVLMultiModalProcessor
    assert factories.dummy_inputs.__base__ is BaseInternVLDummyInputsBuilder
    assert factories.info.__base__ is BaseInternVLProcessingInfo


def test_pixels_are_float_where_the_device_does_not_normalise(make_processor):
    image = noise(200, 100)
    on_device = pixels(process(make_processor(), "<image>", [image]))
    processor = make_processor(mm_device_do_normalize=False, dtype="float32")
    on_host = pixels(process(processor, "<image>", [image]))
    assert on_device.dtype == torch.uint8
    assert on_host.dtype == torch.float32
    assert torch.equal(on_device.float() / 255, on_host)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_the_type_of_pixels_is_the_engines_alone(make_processor, on_device, asked):
    """One step encodes the images of several requests in one tensor."""
    options = dict(mm_device_do_normalize=on_device, dtype="float32")
    plain = process(make_processor(**options), "<image>", [noise(200, 100)])
    result = process(
        make_processor(**options), "<image>", [noise(200, 100)], do_rescale=asked
    )
    of_engine = make_processor(**options, mm_processor_kwargs={"do_rescale": asked})
    for found in (result, process(of_engine, "<image>", [noise(200, 100)])):
        assert torch.equal(pixels(found), pixels(plain))
        assert pixels(found).dtype == pixels(plain).dtype


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_placeholders_tiles_and_features_agree(processor, width, height):
    columns, rows = grid_by_the_rule(width, height, TILE, 1, 12)
    tiles = columns * rows + (columns * rows > 1)
    result = process(processor, "a<image>b", [noise(width, height)])
    assert pixels(result).shape == (tiles, 3, TILE, TILE)
    assert count_image_tokens(result, processor) == tiles * TOKENS
    (placeholder,) = result["mm_placeholders"]["image"]
    assert placeholder.get_num_embeds() == tiles * TOKENS

    tokenizer = processor.info.get_tokenizer()
    text = f"a<img>{'<image>' * TOKENS * tiles}</img>b"
    assert result["prompt_token_ids"] == tokenizer.encode(text)


SETTINGS = [
    {},
    {"max_dynamic_patch": 4},
    {"min_dynamic_patch": 4, "max_dynamic_patch": 9},
    {"dynamic_image_size": False},
    {"use_thumbnail": False},
    {"max_dynamic_patch": 1},
    {"resize": "exact"},
    {"resize": "hf"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_mean_the_same_at_start_and_per_request(
    make_processor, processor, settings
):
    at_start = make_processor(mm_processor_kwargs=settings)
    image = noise(300, 190)
    first = process(at_start, "<image>", [image])
    second = process(processor, "<image>", [image], **settings)
    assert first["prompt_token_ids"] == second["prompt_token_ids"]
    assert torch.equal(pixels(first), pixels(second))

    fewest = settings.get("min_dynamic_patch", 1)
    most = settings.get("max_dynamic_patch", 12)
    if settings.get("dynamic_image_size") is False:
        fewest = most = 1
    columns, rows = grid_by_the_rule(300, 190, TILE, fewest, most)
    thumbnail = settings.get("use_thumbnail", True) and columns * rows > 1
    assert len(pixels(first)) == columns * rows + thumbnail
    assert count_image_tokens(first, processor) == len(pixels(first)) * TOKENS


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_profiling_expects_the_most_tokens_an_image_can_have(make_processor, settings):
    processor = make_processor(mm_processor_kwargs=settings)
    (most,) = processor.info.get_mm_max_tokens_per_item(4096, {"image": 1}).values()
    seen = [
        count_image_tokens(process(processor, "<image>", [noise(*size)]), processor)
        for size in [*SIZES, (TILE * 12, TILE), (TILE * 4, TILE * 3)]
    ]
    assert max(seen) == most
    width, height = processor.info.get_image_size_with_most_features()
    largest = process(processor, "<image>", [noise(width, height)])
    assert count_image_tokens(largest, processor) == most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_dynamic_patch": "many"}, "max_dynamic_patch must be a whole number"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number from 1"),
        ({"max_dynamic_patch": 10**9}, "from 1 to 256"),
        ({"min_dynamic_patch": 0}, "min_dynamic_patch must be a whole number from 1"),
        ({"min_dynamic_patch": True}, "min_dynamic_patch must be a whole number"),
        ({"min_dynamic_patch": 5, "max_dynamic_patch": 3}, "from 5 to 256"),
        ({"use_thumbnail": "no"}, "use_thumbnail must be true or false"),
        ({"resize": "best"}, "resize must be one of 'fast', 'exact', 'hf'"),
        ({"resize": ["fast"]}, "resize must be one of"),
        ({"dynamic_image_size": 1}, "dynamic_image_size must be true or false"),
        ({"image_size": 32}, r"Unknown mm_processor_kwargs \['image_size'\]"),
        ({"tiles": [1]}, r"Unknown mm_processor_kwargs \['tiles'\].*use_thumbnail"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(processor, settings, message):
    with pytest.raises(VLLMValidationError, match=message):
        process(processor, "<image>", [noise(8, 8)], **settings)


@pytest.mark.parametrize("recipe", ["fast", "exact", "hf"])
@pytest.mark.parametrize("most", [1, 12])
def test_warming_up_compiles_the_resampling(make_processor, monkeypatch, recipe, most):
    """vLLM builds dummy inputs at startup, so the first request does not wait for
    the compiler."""
    from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_resampling import (
        resample,
    )

    called = set()
    for name in ("rows_first", "columns_first"):
        compiled = getattr(resample, name)

        def watched(pixels, along_rows, *args, name=name, compiled=compiled):
            called.add((name, along_rows[2].dtype))
            compiled(pixels, along_rows, *args)

        monkeypatch.setattr(resample, name, watched)
    resample.agrees_with_pillow.cache_clear()
    settings = {"resize": recipe, "max_dynamic_patch": most}
    processor = make_processor(mm_processor_kwargs=settings)
    (item,) = processor.get_dummy_mm_inputs({"image": 1})["mm_kwargs"]["image"]
    precisions = ["float64"] if recipe == "hf" else ["float32", "float64"]
    passes = ["rows_first", "columns_first"]
    needed = {(name, np.dtype(kind)) for name in passes for kind in precisions}
    assert called == needed
    tiles = len(item["pixel_values_flat"].data)
    assert tiles == processor.info.get_max_image_tokens() // TOKENS


def test_many_images_keep_their_places(processor):
    images = [noise(64, 64, 1), noise(300, 100, 2), noise(64, 64, 3)]
    result = process(processor, "x<image><image>y<image>", images)
    expected = torch.cat(
        [pixels(process(processor, "<image>", [image])) for image in images]
    )
    assert torch.equal(pixels(result), expected)
    starts = [p.offset for p in result["mm_placeholders"]["image"]]
    assert starts == sorted(starts)
    assert len(starts) == 3


def test_token_ids_and_text_give_the_same_prompt(processor):
    tokenizer = processor.info.get_tokenizer()
    images = [noise(64, 64), noise(300, 100)]
    prompt = "What is <image> beside <image>?"
    from_text = process(processor, prompt, images)
    from_ids = process(processor, tokenizer.encode(prompt), images)
    assert from_text["prompt_token_ids"] == from_ids["prompt_token_ids"]


def test_embeddings_take_the_places_of_the_image_tokens(processor):
    hf_processor = processor.info.get_hf_processor()
    context = hf_processor.tokenizer.convert_tokens_to_ids("<image>")
    for tiles in (1, 13):
        update = hf_processor.get_image_repl(tiles)
        mask = update.is_embed(update.full)
        assert mask.tolist() == [token == context for token in update.full]
        assert mask.sum() == tiles * hf_processor.image_seq_length


def test_the_cache_changes_nothing(make_processor):
    processor = make_processor()
    cache = MultiModalProcessorOnlyCache(processor.info.ctx.model_config)
    sources = [noise(64, 64), noise(300, 100)]
    for prompt, images in (
        ("<image>", sources[:1]),
        ("<image>b<image>", sources),
        ("<image>b<image>", sources[::-1]),
    ):
        plain = process(processor, prompt, images)
        cached = process(processor, prompt, images, cache=cache)
        assert plain["prompt_token_ids"] == cached["prompt_token_ids"]
        assert torch.equal(pixels(plain), pixels(cached))
        assert plain["mm_hashes"] == cached["mm_hashes"]


def test_other_settings_miss_the_cache(make_processor):
    processor = make_processor()
    cache = MultiModalProcessorOnlyCache(processor.info.ctx.model_config)
    image = noise(300, 100)
    many = process(processor, "<image>", [image], cache=cache)
    one = process(processor, "<image>", [image], cache=cache, max_dynamic_patch=1)
    assert len(pixels(many)) > len(pixels(one)) == 1


def test_image_embeds_take_their_rows_of_tokens(make_processor):
    processor = make_processor(enable_mm_embeds=True)
    embeds = [torch.randn(8, 256), torch.randn(4, 256)]
    result = process(processor, "<image>,<image>", embeds)
    assert [p.get_num_embeds() for p in result["mm_placeholders"]["image"]] == [8, 4]
    with pytest.raises(ValueError, match=r"got 64, but model expects 256"):
        process(processor, "<image>", [torch.randn(8, 64)])
    with pytest.raises(VLLMValidationError, match="at least one row"):
        process(processor, "<image>", [torch.randn(0, 256)])


def test_a_tokenizer_without_the_image_tokens_is_refused(processor):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import TokenizersBackend

    bare = TokenizersBackend(tokenizer_object=Tokenizer(BPE()))
    with pytest.raises(ValueError, match="special token '<img>' is missing"):
        NemotronVLProcessor(
            processor.info.get_image_processor(), bare, image_seq_length=4
        )


def test_auto_processor_gives_the_native_one(checkpoint):
    from transformers import AutoProcessor

    auto = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    assert type(auto) is NemotronVLProcessor
    result = auto(text="<image>", images=noise(64, 64), return_tensors="pt")
    expected = auto.tokenizer.encode(f"<img>{'<image>' * TOKENS}</img>")
    assert result["input_ids"][0].tolist() == expected
