"""Compare the model and its image processing with the independent reference.

The tests at the end break the reference on purpose. Each comparison must notice, so
nobody can loosen it without a failing test.
"""

import functools
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.errors import relative_error
from nemotron_vl.verify.reference import RadioTower, Reference
from support.noise import tiles

TOWER_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
MUTATIONS = [
    (mutation, dtype)
    for mutation in ("cropped positions", "no conditioner", "v1 for v2")
    for dtype in BOUNDS
]
# bfloat16 does not tell the two conventions of the corners apart.
MUTATIONS.append(("corners not aligned", torch.float32))


@pytest.fixture(scope="module", params=["random", "trained"])
def checkpoint(request, checkpoint, tiny) -> Path:
    return {"random": checkpoint, "trained": tiny}[request.param]


@pytest.fixture(scope="module")
def reference(checkpoint) -> Reference:
    return Reference.load(checkpoint)


@pytest.fixture(scope="module")
def models(load_model, checkpoint):
    """A function that gives the model in a dtype, loaded once."""
    return functools.cache(
        lambda dtype: load_model(checkpoint, str(dtype).removeprefix("torch."))
    )


@pytest.fixture(scope="module")
def processor(checkpoint):
    config = EngineArgs(
        model=str(checkpoint), mm_processor_kwargs={"resize": "exact"}
    ).create_model_config()
    return MULTIMODAL_REGISTRY.create_processor(config)


@pytest.fixture(scope="module")
def images(photo, page) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (63, 65), (200, 64), (64, 500), (1, 1), (333, 111), (900, 700)]
    noise = [rng.integers(0, 256, (h, w, 3), np.uint8) for w, h in sizes]
    return [photo, page.convert("RGB"), *map(Image.fromarray, noise)]


def check_pixels(processor, reference, images) -> None:
    image_processor = processor.info.get_image_processor()
    for image in images:
        found = image_processor(images=image)["pixel_values_flat"]
        expected = reference.to_pixels(image)
        assert found.dtype == expected.dtype == torch.uint8
        assert torch.equal(found, expected), image.size


def check_tower(model, reference, count: int) -> None:
    pixels = tiles(count, model.config.force_image_size)
    found = model.vision_model(model.input_conditioner(pixels))
    expected = reference.tower(reference.condition(pixels))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert relative_error(found, expected) < TOWER_BOUNDS[found.dtype]


def check_features(model, reference, count: int) -> None:
    pixels = tiles(count, model.config.force_image_size)
    found, expected = model.extract_feature(pixels), reference.encode(pixels)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < BOUNDS[found.dtype]


def test_pixels_are_identical(processor, reference, images):
    check_pixels(processor, reference, images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ps_version", ["v1", "v2"])
def test_tower_and_connector(load_model, native_products, tmp_path, ps_version, dtype):
    make_checkpoint(tmp_path / "ckpt", ps_version=ps_version, tile_size=128)
    model = load_model(tmp_path / "ckpt", str(dtype).removeprefix("torch."))
    reference = Reference.load(tmp_path / "ckpt", dtype)
    for count in (1, 2, 5, 13):
        check_tower(model, reference, count)
        check_features(model, reference, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vit_huge_at_512_pixels(load_model, tmp_path, dtype):
    make_checkpoint(
        tmp_path / "ckpt",
        tower="vit_huge",
        tower_layers=2,
        tile_size=512,
        cpe_max_size=2048,
    )
    model = load_model(tmp_path / "ckpt", str(dtype).removeprefix("torch."))
    check_tower(model, Reference.load(tmp_path / "ckpt", model.encoder_dtype), 1)


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ("<image>", [0]),
        ("What is\n<image>?", [4]),
        ("<image><image>and <image>.", [1, 2, 3]),
        (
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nRead 1,234.50 $."
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            [5],
        ),
    ],
    ids=repr,
)
def test_prompt_token_ids(processor, reference, images, prompt, chosen):
    taken = [images[index] for index in chosen]
    items = processor.info.parse_mm_data({"image": taken})
    found = processor(prompt, items)["prompt_token_ids"]
    assert found == reference.embed(prompt, taken)[0]


def _reversed_tiles(self, image):
    *rest, last = Reference.cut(self, image)
    return [*rest[::-1], last]


def _thumbnail_first(self, image):
    cut = Reference.cut(self, image)
    return [cut[-1], *cut[:-1]]


def _swapped_channels(self, image):
    return Reference.to_pixels(self, image).flip(1)


@pytest.mark.parametrize(
    ("method", "mutant"),
    [
        ("cut", _reversed_tiles),
        ("cut", _thumbnail_first),
        ("to_pixels", _swapped_channels),
    ],
)
def test_a_mutated_preprocessing_is_noticed(
    processor, reference, images, monkeypatch, method, mutant
):
    monkeypatch.setattr(reference, method, types.MethodType(mutant, reference))
    with pytest.raises(AssertionError):
        check_pixels(processor, reference, images)


def _cropped_positions(self, rows, columns):
    grid = self.positions.reshape(1, self.grid, self.grid, -1)
    return grid[:, :rows, :columns].flatten(1, 2)


def _unconditioned(self, pixels):
    return (pixels.float() / 255).to(self.tower.prefix.dtype)


@pytest.mark.parametrize("count", [1, 13])
@pytest.mark.parametrize(("mutation", "dtype"), MUTATIONS, ids=str)
def test_a_mutated_model_is_noticed(
    models, checkpoint, monkeypatch, mutation, count, dtype
):
    model = models(dtype)
    reference = Reference.load(checkpoint, dtype)
    check_features(model, reference, count)
    if mutation == "cropped positions":
        monkeypatch.setattr(RadioTower, "resize_positions", _cropped_positions)
    elif mutation == "corners not aligned":
        reference.tower.align_corners = False
    elif mutation == "no conditioner":
        monkeypatch.setattr(Reference, "condition", _unconditioned)
    else:
        reference.config["ps_version"] = "v1"
    with pytest.raises(AssertionError):
        check_features(model, reference, count)


def test_the_references_own_steps(reference):
    """Check the reference itself against the definition of the architecture."""
    assert reference.choose_grid(64, 64) == (1, 1)
    assert reference.choose_grid(10000, 10) == (12, 1)
    assert len(reference.tower.prefix) == 8  # 4 class and 4 register tokens
    grid = torch.arange(16.0).reshape(1, 16, 1)
    assert reference.pixel_shuffle(grid)[0, 1].tolist() == [2, 3, 6, 7]
    # A grid of its own coordinates stays linear, and its corners stay on the corners.
    tower = RadioTower(reference.config["vision_config"])
    last = tower.grid - 1
    row, column = torch.meshgrid(*[torch.arange(last + 1.0)] * 2, indexing="ij")
    tower.positions.data = torch.stack([row, column], -1).reshape(1, -1, 2)
    found = tower.resize_positions(4, 4)
    assert found[0, 1].tolist() == pytest.approx([0, last / 3])
    assert found[0, 15].tolist() == pytest.approx([last, last])
    tower.align_corners = False
    assert tower.resize_positions(4, 4)[0, 0].tolist() == [last / 8 - 0.375] * 2
