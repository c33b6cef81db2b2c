"""From images and prompts to tiles and tokens."""

import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.internvl import (
    BaseInternVLDummyInputsBuilder,
    BaseInternVLMultiModalProcessor,
    BaseInternVLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.media.image import ImageMediaIO
from vllm.transformers_utils.processors.internvl import get_internvl_target_ratios
from vllm.transformers_utils.processors.nemotron_vl import (
    image_to_pixel_values_nemotron_vl,
)

from support.noise import noise
from vllm_nemotron_vl.multimodal import nemotron_vl as nemotron_vl_reading
from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb
from vllm_nemotron_vl.transformers_utils.processors import (
    nemotron_vl as nemotron_vl_processors,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
    NemotronVLProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    _candidate_grids,
    choose_grid,
)

TILE, TOKENS = 64, 4  # pixels and tokens of a tile of the test checkpoints

SIZES = [
    (1, 1),
    (32, 32),
    (64, 64),
    (65, 64),
    (50, 60),
    (128, 128),
    (1, 3000),
    (10000, 10),
    (640, 480),
    (300, 900),
    (1700, 2200),
    (1920, 1080),
]


@pytest.fixture(scope="module")
def make_processor(checkpoint):
    def make(**options):
        engine_args = EngineArgs(model=str(checkpoint), **options)
        return MULTIMODAL_REGISTRY.create_processor(engine_args.create_model_config())

    return make


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor()


def process(processor, prompt, images, cache=None, **kwargs):
    items = processor.info.parse_mm_data({"image": images})
    return processor(prompt, items, hf_processor_mm_kwargs=kwargs, cache=cache)


def test_an_image_is_converted_once(processor, monkeypatch):
    """By the parser, or in vLLM's loader; not again when it is cut into tiles."""
    converted = []

    def count(image: Image.Image) -> Image.Image:
        converted.append(image)
        return to_rgb(image)

    monkeypatch.setattr(nemotron_vl_reading, "to_rgb", count)
    monkeypatch.setattr(nemotron_vl_processors, "to_rgb", count)
    process(processor, "<image>", [Image.new("LA", (64, 64))])
    assert len(converted) == 1


def pixels(result) -> torch.Tensor:
    """All tiles of all images in a processed prompt."""
    items = result["mm_kwargs"]["image"]
    return torch.cat([item["pixel_values_flat"].data for item in items])


def count_image_tokens(result, processor) -> int:
    placeholder = processor.info.get_tokenizer().convert_tokens_to_ids("<image>")
    return result["prompt_token_ids"].count(placeholder)


def grid_by_the_rule(width, height, tile, fewest, most) -> tuple[int, int]:
    """The tiling rule as the model card states it."""
    grids = [
        (columns, rows)
        for columns, rows in itertools.product(range(1, most + 1), repeat=2)
        if fewest <= columns * rows <= most
    ]
    best, best_score = (1, 1), -math.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        ratio, aspect = columns / rows, width / height
        score = min(columns * rows * tile * tile / (width * height), 0.6)
        score *= min(ratio / aspect, aspect / ratio)
        if score > best_score:
            best, best_score = (columns, rows), score
    return best


def test_the_image_only_classes_are_inherited():
    from vllm_nemotron_vl.model_executor.models.nemotron_vl import (
        LlamaNemotronVLChatModel,
    )

    factories = LlamaNemotronVLChatModel._processor_factory
    assert factories.processor.__base__ is BaseInternVLMultiModalProcessor
    assert factories.dummy_inputs.__base__ is BaseInternVLDummyInputsBuilder
    assert factories.info.__base__ is BaseInternVLProcessingInfo


@pytest.mark.parametrize("tile", [64, 512])
@pytest.mark.parametrize(("fewest", "most"), [(1, 12), (1, 6), (4, 12), (1, 1)])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_grid_follows_the_rule(width, height, fewest, most, tile):
    columns, rows = grid_by_the_rule(width, height, tile, fewest, most)
    for use_thumbnail in (False, True):
        grid = choose_grid(
            width,
            height,
            image_size=tile,
            min_tiles=fewest,
            max_tiles=most,
            use_thumbnail=use_thumbnail,
        )
        assert grid[:2] == (columns, rows)
        extra = use_thumbnail and columns * rows > 1
        assert grid.num_tiles == columns * rows + extra


@pytest.mark.parametrize("limits", [(1, 12), (1, 6), (2, 3), (4, 12), (5, 40)])
def test_equally_good_grids_are_tried_in_vllms_order(limits):
    assert _candidate_grids(*limits) == get_internvl_target_ratios(*limits)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pixels_equal_vllms_in_tree_ones(width, height):
    image = noise(width, height)
    tiles = tile_with("exact", image)
    in_tree = image_to_pixel_values_nemotron_vl(
        image, input_size=TILE, min_num=1, max_num=12, use_thumbnail=True
    )
    assert tiles.dtype == torch.uint8
    assert torch.equal(tiles.float() / 255, in_tree)


def tile_with(recipe: str, image: Image.Image, tile: int = TILE) -> torch.Tensor:
    cutter = NemotronVLImageProcessor(tile, resize=recipe, do_rescale=False)
    return cutter(images=image)["pixel_values_flat"]


@pytest.mark.parametrize("tile", [64, 512])
def test_the_fast_recipe_is_close_to_the_exact_one(photo, page, tile):
    rng = np.random.default_rng(0)
    edges = Image.fromarray(rng.integers(0, 2, (555, 777, 3), np.uint8) * 255)
    for image in (photo, page, edges, *(noise(*size) for size in SIZES)):
        fast, exact = (tile_with(r, image, tile) for r in ("fast", "exact"))
        assert fast.shape == exact.shape
        assert fast.is_contiguous() and fast.dtype == torch.uint8
        assert (fast.int() - exact.int()).abs().max() <= 2, image.size


@pytest.mark.parametrize("recipe", ["fast", "exact"])
def test_an_image_of_a_tiles_size_is_not_resampled(recipe):
    image = noise(TILE, TILE)
    (tile,) = tile_with(recipe, image)
    assert torch.equal(tile, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(512, 512), (640, 480), (100, 300)])
def test_the_checkpoints_own_recipe_doubles_the_image_first(size):
    image = noise(*size)
    doubled = image.resize((2 * size[0], 2 * size[1]), Image.Resampling.BILINEAR)
    columns, rows = grid_by_the_rule(*doubled.size, 512, 1, 12)
    whole = torch.from_numpy(np.array(doubled)).permute(2, 0, 1)
    resized = resize(whole, [rows * 512, columns * 512], antialias=True)
    expected = [
        resized[:, y * 512 : (y + 1) * 512, x * 512 : (x + 1) * 512]
        for y in range(rows)
        for x in range(columns)
    ]
    if len(expected) > 1:
        expected.append(resize(whole, [512, 512], antialias=True))
    assert torch.equal(tile_with("hf", image, 512), torch.stack(expected))
    if size == (512, 512):
        assert (len(tile_with("exact", image, 512)), len(expected)) == (1, 5)


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


def white_where_transparent() -> np.ndarray:
    levels = np.full((8, 8, 3), 40, np.uint8)
    levels[:4] = 255
    return levels


def half_transparent(mode: str) -> Image.Image:
    image = Image.new("LA", (8, 8), (40, 255))
    image.paste((40, 0), (0, 0, 8, 4))
    if mode == "P":
        indexed = Image.new("P", (8, 8), 1)
        indexed.putpalette([9, 9, 9, 40, 40, 40])
        indexed.paste(0, (0, 0, 8, 4))
        indexed.info["transparency"] = 0
        return indexed
    if mode == "RGB":  # like a PNG that declares one colour transparent
        image = Image.new("RGB", (8, 8), (40, 40, 40))
        image.paste((0, 0, 0), (0, 0, 8, 4))
        image.info["transparency"] = (0, 0, 0)
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_lie_on_white(mode):
    assert np.array_equal(to_rgb(half_transparent(mode)), white_where_transparent())


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
INK = Image.fromarray(255 - RAMP)
CMYK = Image.merge("CMYK", [INK, INK, INK, Image.new("L", (16, 16))])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(np.uint16) * 257),
        Image.fromarray(RAMP.astype(np.int32) * 257),
        Image.fromarray(RAMP.astype(np.float32) / 255),
        Image.fromarray(RAMP).convert("RGBA"),
        Image.fromarray(RAMP).convert("P"),
        Image.fromarray(np.dstack([RAMP] * 3)),
        CMYK,
    ],
    ids=lambda image: image.mode,
)
def test_every_mode_keeps_its_grey_levels(image):
    expected = np.dstack([RAMP] * 3).astype(int)
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - expected).max() <= 1


def test_black_and_white_images():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(to_rgb(image)).tolist() == [[[0] * 3, [255] * 3]]


def test_exif_rotation_is_applied(processor):
    upright = noise(200, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # display it rotated by 90 degrees clockwise
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    result = process(processor, "<image>", [Image.open(file)])
    assert torch.equal(pixels(result), pixels(process(processor, "<image>", [upright])))


@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_files_from_the_server_keep_16_bit_levels(processor, mode):
    """vLLM's loader makes such a file white, so its bytes are decoded again."""
    levels = RAMP.astype(np.uint16) * 257 if mode == "I;16" else RAMP
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    loaded = ImageMediaIO().load_bytes(file.getvalue())
    grey = Image.fromarray(RAMP).convert("RGB")
    result = process(processor, "<image>", [loaded])
    assert torch.equal(pixels(result), pixels(process(processor, "<image>", [grey])))


@pytest.mark.parametrize(
    "kind",
    [*("hwc", "chw", "torch", "batch", "grey", "hw1"), "one torch", "grey torch"],
)
def test_arrays_are_images(processor, kind):
    image = noise(96, 64)
    array = np.asarray(image)
    given = {
        "hwc": [array],
        "chw": [array.transpose(2, 0, 1)],
        "torch": [torch.from_numpy(array.copy())],
        "batch": array[None],
        "grey": [array[..., 0]],
        "hw1": [array[..., :1]],
        "one torch": torch.from_numpy(array.transpose(2, 0, 1).copy()),
        "grey torch": [torch.from_numpy(array[..., 0].copy())],
    }[kind]
    if kind in ("grey", "hw1", "grey torch"):
        image = Image.fromarray(array[..., 0])
    result = process(processor, "<image>", given)
    expected = process(processor, "<image>", [image])
    assert torch.equal(pixels(result), pixels(expected))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 50)), "0x50 pixels"),
        (np.zeros((8, 8, 3), np.float32), "must be uint8"),
        (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\)"),
        ("photo.png", "must be a PIL image or a uint8 array, not str"),
    ],
    ids=["empty", "float", "two channels", "path"],
)
def test_invalid_images_are_named(processor, image, message):
    with pytest.raises(VLLMValidationError, match=message):
        process(processor, "<image>", [image])


def test_a_truncated_file_is_named(processor, photo):
    file = io.BytesIO()
    photo.save(file, "JPEG")
    broken = Image.open(io.BytesIO(file.getvalue()[:5000]))
    with pytest.raises(VLLMValidationError, match="cannot be decoded"):
        process(processor, "<image>", [broken])


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
