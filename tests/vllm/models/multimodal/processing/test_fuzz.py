"""Property tests with arbitrary sizes, settings, configurations, prompts and files.

The number of tiles is within its bounds, there are as many image tokens as features,
and only documented exceptions are raised.
"""

import copy
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from vllm.exceptions import VLLMValidationError

from vllm_nemotron_vl.multimodal.nemotron_vl import to_rgb
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import open_checked
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl import NemotronVLConfig
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_checks import (
    check_servable,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    IMAGE_SETTINGS,
    choose_grid,
)

often = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Grids


@often
@given(
    width=st.integers(1, 10**6),
    height=st.integers(1, 10**6),
    tiles=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted),
    thumbnail=st.booleans(),
    recipe=st.sampled_from(["fast", "exact", "hf"]),
)
def test_a_grid_is_within_bounds(width, height, tiles, thumbnail, recipe):
    fewest, most = tiles
    options = dict(
        image_size=512,
        min_tiles=fewest,
        max_tiles=most,
        use_thumbnail=thumbnail,
        resize=recipe,
    )
    grid = choose_grid(width, height, **options)
    cells = grid.columns * grid.rows
    assert fewest <= cells <= most
    assert grid.num_tiles == cells + (thumbnail and cells > 1)
    assert grid == choose_grid(width, height, **options)


@often
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    most=st.integers(1, 12),
    mode=st.sampled_from(
        ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"]
    ),
    recipe=st.sampled_from(["fast", "exact", "hf"]),
)
def test_any_image_becomes_the_tiles_of_its_grid(width, height, most, mode, recipe):
    image = to_rgb(Image.new(mode, (width, height)))
    assert (image.mode, image.size) == ("RGB", (width, height))
    processor = NemotronVLImageProcessor(32, max_dynamic_patch=most, resize=recipe)
    grid = processor.grid_for(width, height)
    tiles = processor.tile(image, grid)
    assert tiles.shape == (grid.num_tiles, 3, 32, 32)
    assert tiles.dtype == torch.uint8


# Settings

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
names = sorted({*IMAGE_SETTINGS, "do_rescale", "do_normalize"} - {"image_size"})


@often
@given(
    st.dictionaries(st.sampled_from(names), values | st.integers(0, 300), max_size=3)
)
def test_settings_work_or_are_refused(given_settings):
    try:
        processor = NemotronVLImageProcessor(32, **given_settings)
    except VLLMValidationError:
        return
    grid = processor.grid_for(100, 60)
    assert 1 <= grid.num_tiles <= 257


# Configurations


@pytest.fixture(scope="module")
def config(checkpoint) -> dict:
    return json.loads((checkpoint / "config.json").read_text())


def places(value, path=()) -> list[tuple]:
    """Paths to all keys of nested dicts."""
    if not isinstance(value, dict):
        return []
    inner = [p for key, item in value.items() for p in places(item, (*path, key))]
    return [(*path, key) for key in value] + inner


@often
@given(data=st.data())
def test_configurations_work_or_are_refused(config, data):
    """Refused means a `ValueError` with a message."""
    changed = copy.deepcopy(config)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, key = data.draw(st.sampled_from(places(config)))
        place = changed
        for step in path:
            place = place.get(step) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            continue
        if data.draw(st.booleans()):
            place[key] = data.draw(values | st.integers(-(10**12), 10**12))
        else:
            place.pop(key, None)
    try:
        check_servable(NemotronVLConfig.from_dict(changed))
    except ValueError as error:
        assert str(error)


# Prompts


@pytest.fixture(scope="module")
def processor(checkpoint):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    options = dict(limit_mm_per_prompt={"image": 3}, mm_processor_cache_gb=0)
    model = EngineArgs(model=str(checkpoint), max_model_len=4096, **options)
    return MULTIMODAL_REGISTRY.create_processor(model.create_model_config())


words = st.lists(
    st.sampled_from(["<image>", "<img>", "</img>", "<|eot_id|>", "a", "\n", "é", "7"]),
    max_size=8,
).map("".join)


@settings(parent=often, max_examples=100)
@given(
    texts=st.lists(
        words.map(lambda t: t.replace("<image>", "")), min_size=1, max_size=4
    ),
    sizes=st.data(),
)
def test_every_feature_has_its_token(processor, texts, sizes):
    images = [
        Image.new(
            "RGB", sizes.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
        )
        for _ in texts[1:]
    ]
    result = processor(
        "<image>".join(texts),
        mm_items=processor.info.parse_mm_data({"image": images} if images else {}),
        hf_processor_mm_kwargs={},
    )
    ids = result["prompt_token_ids"]
    image = processor.info.get_tokenizer().convert_tokens_to_ids("<image>")
    tiles = 0
    for item in result["mm_kwargs"].get("image", []):
        tiles += len(item["pixel_values_flat"].data)
    assert ids.count(image) == 4 * tiles
    found = result["mm_placeholders"].get("image", [])
    assert sum(place.get_num_embeds() for place in found) == 4 * tiles


# Files

OTHERS = ("ICO", "TGA", "PCX", "SGI", "JPEG2000")
MODES = {
    **dict.fromkeys(("PNG", "JPEG", "WEBP", "TIFF", "BMP", "ICO", "TGA", "PCX"), "RGB"),
    **{"GIF": "P", "SGI": "L", "JPEG2000": "RGB"},
}


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    image = Image.radial_gradient("L").resize((40, 30)).convert(MODES[kind])
    image.save(file, kind)
    return file.getvalue()


FILES = {kind: saved(kind) for kind in MODES}


damage = dict(
    seed=st.integers(0, 2**32 - 1),
    changes=st.integers(1, 12),
    cut=st.integers(0, 200),
)


@settings(parent=often, max_examples=330)
@given(kind=st.sampled_from(sorted(FILES.keys() - {*OTHERS})), **damage)
def test_damaged_files_are_read_or_refused(kind, seed, changes, cut):
    read_or_refuse(kind, seed, changes, cut)


@settings(parent=often, max_examples=100)
@given(kind=st.sampled_from(OTHERS), **damage)
def test_damaged_files_of_other_formats_are_read_or_refused(kind, seed, changes, cut):
    """A process of its own reads each of them."""
    read_or_refuse(kind, seed, changes, cut)


def read_or_refuse(kind: str, seed: int, changes: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(FILES[kind])
    for place in rng.integers(0, len(data), changes):
        data[place] = rng.integers(256)
    try:
        image = open_checked(bytes(data[: len(data) - cut]), OTHERS)
    except VLLMValidationError:
        return
    if image.width * image.height > 10**7:
        return  # allowed, but slow
    try:
        assert to_rgb(image).mode == "RGB"
    except VLLMValidationError as error:
        assert "image" in str(error)
