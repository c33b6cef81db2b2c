"""Equal tiles are encoded once, within a forward pass and across requests."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.prometheus import get_prometheus_registry

from support.forked import run_forked
from support.loading import make_config
from vllm_nemotron_vl.config.nemotron_vl import EncoderConfig, ImageConfig
from vllm_nemotron_vl.model_executor.models import nemotron_vl_reuse
from vllm_nemotron_vl.model_executor.models.nemotron_vl_reuse import TileReuse
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_digest import (
    tile_digest,
)


def tiles(*kinds: int) -> torch.Tensor:
    """Tiles of noise; equal numbers give equal tiles."""
    made = [
        np.random.default_rng(kind).integers(0, 256, (3, 64, 64), np.uint8)
        for kind in kinds
    ]
    return torch.from_numpy(np.stack(made))


def digests(pixels: torch.Tensor) -> torch.Tensor:
    rows = [list(tile_digest(tile)) for tile in pixels]
    return torch.tensor(rows, dtype=torch.uint8)


def image(*kinds: int) -> dict[str, torch.Tensor]:
    """The model's inputs for one image."""
    pixels = tiles(*kinds)
    return {
        "pixel_values_flat": pixels,
        "image_num_patches": torch.tensor([len(pixels)]),
        "image_token_id": torch.tensor([1]),
        "tile_digests": digests(pixels),
    }


def embed(model, *kinds: int) -> torch.Tensor:
    (embeddings,) = model.embed_multimodal(**image(*kinds))
    return embeddings


def counts(model) -> dict[str, int]:
    """Number of tiles by outcome since the last call."""
    found = dict(model.tile_reuse.counts)
    model.tile_reuse.counts.clear()
    return found


@pytest.fixture(scope="module")
def plain(load_model, checkpoint):
    return load_model(checkpoint)


@pytest.fixture
def caching(load_model, checkpoint):
    """A model whose cache has room for four tiles of 4 x 256 float32 values."""
    config = {"nemotron_vl": {"tile_cache_mb": 1}}
    model = load_model(checkpoint, additional_config=config)
    assert model.tile_reuse.slots == 1_000_000 // (4 * 4 * 256)
    model.tile_reuse._cache = model.tile_reuse._cache[:4]
    return model


def encode_all(model, *kinds: int) -> torch.Tensor:
    return model.extract_feature(tiles(*kinds)).flatten(0, 1)


def record_sizes(model) -> list[int]:
    """A list that grows by the number of tiles at each call of the tower."""
    sizes: list[int] = []
    model.vision_model.register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0]))
    )
    return sizes


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-6


def test_equal_tiles_of_a_forward_pass_are_encoded_once(plain):
    kinds = (1, 2, 1, 3, 3, 3)
    assert_equal(embed(plain, *kinds), encode_all(plain, *kinds))
    assert counts(plain) == {"encoded": 3, "repeated": 3, "cached": 0}


def test_without_a_cache_nothing_outlives_the_forward_pass(plain):
    for _ in range(2):
        embed(plain, 1, 2)
        assert counts(plain) == {"encoded": 2, "repeated": 0, "cached": 0}


def test_images_of_a_batch_share_their_tiles(plain):
    first, second = image(1, 2), image(2, 1, 4)
    batch = {name: torch.cat([first[name], second[name]]) for name in first}
    found = plain.embed_multimodal(**batch)
    assert counts(plain)["encoded"] == 3
    assert_equal(found[0], encode_all(plain, 1, 2))
    assert_equal(found[1], encode_all(plain, 2, 1, 4))


def test_tiles_without_a_digest_are_all_encoded(plain):
    fields = image(1, 1, 1)
    fields["tile_digests"].zero_()
    plain.embed_multimodal(**fields)
    assert counts(plain) == {"encoded": 3, "repeated": 0, "cached": 0}
    del fields["tile_digests"]
    (found,) = plain.embed_multimodal(**fields)
    assert_equal(found, encode_all(plain, 1, 1, 1))


def test_digests_not_pixels_decide_what_is_equal(plain):
    """Otherwise the tests above would not notice a broken digest."""
    fields = image(1, 2)
    fields["tile_digests"][1] = fields["tile_digests"][0]
    (found,) = plain.embed_multimodal(**fields)
    assert_equal(found, encode_all(plain, 1, 1))


def test_each_tile_needs_its_digest(plain):
    fields = image(1, 2)
    fields["tile_digests"] = fields["tile_digests"][:1]
    with pytest.raises(
        ValueError, match=r"tile_digests dim\[0\] expected 'bnp'=2, got 1"
    ):
        plain.embed_multimodal(**fields)


def test_tiles_of_earlier_requests_come_from_the_cache(caching):
    embed(caching, 1, 2, 1)
    assert counts(caching) == {"encoded": 2, "repeated": 1, "cached": 0}
    kinds = (2, 3, 1, 3)
    assert_equal(embed(caching, *kinds), encode_all(caching, *kinds))
    assert counts(caching) == {"encoded": 1, "repeated": 1, "cached": 2}


def test_the_least_recently_used_tile_is_evicted(caching):
    embed(caching, 1, 2, 3, 4)
    embed(caching, 1)  # 2 is now the least recently used
    embed(caching, 5)
    counts(caching)
    kinds = (1, 3, 4, 5)
    assert_equal(embed(caching, *kinds), encode_all(caching, *kinds))
    assert counts(caching)["cached"] == 4
    embed(caching, 2)
    assert counts(caching)["encoded"] == 1


def test_more_new_tiles_than_slots(caching):
    kinds = (9, 8, 7, 6, 5, 4, 9)
    assert_equal(embed(caching, *kinds), encode_all(caching, *kinds))
    counts(caching)
    assert_equal(embed(caching, *kinds), encode_all(caching, *kinds))
    assert counts(caching) == {"encoded": 2, "repeated": 1, "cached": 4}


def test_random_traffic_equals_plain_encoding(caching):
    rng = np.random.default_rng(0)
    for _ in range(50):
        kinds = rng.integers(0, 8, rng.integers(1, 9)).tolist()
        assert_equal(embed(caching, *kinds), encode_all(caching, *kinds))


def test_loading_weights_empties_the_cache(caching):
    embed(caching, 1, 2)
    counts(caching)
    bias = caching.mlp1[3].bias
    caching.load_weights([("mlp1.3.bias", bias + 1)])
    assert_equal(embed(caching, 1, 2), encode_all(caching, 1, 2))
    assert counts(caching)["encoded"] == 2


def test_updates_in_place_empty_the_cache(caching):
    """As `reload_weights(is_checkpoint_format=False)` of vLLM makes them."""
    layers = caching.vision_model.model.encoder.layers
    for bias in layers[1].norm1.bias, caching.mlp1[3].bias:
        embed(caching, 1, 2)
        counts(caching)
        embed(caching, 1, 2)
        assert counts(caching)["cached"] == 2
        bias.copy_(bias + 0.5)
        assert_equal(embed(caching, 1, 2), encode_all(caching, 1, 2))
        assert counts(caching)["encoded"] == 2


def test_there_is_no_cache_where_weights_change_without_a_sign(load_model, checkpoint):
    model = load_model(
        checkpoint,
        weight_transfer_config={"backend": "nccl"},
        additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
    )
    assert model.tile_reuse.slots == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_cache_has_the_models_dtype(load_model, checkpoint, dtype):
    config = {"nemotron_vl": {"tile_cache_mb": 1}}
    model = load_model(checkpoint, dtype=dtype, additional_config=config)
    first = embed(model, 1, 2)
    assert first.dtype == getattr(torch, dtype)
    assert torch.equal(embed(model, 1, 2), first)
    assert counts(model) == {"encoded": 2, "repeated": 0, "cached": 2}


def test_adapters_on_the_tower_turn_reuse_and_splitting_off(load_model, checkpoint):
    """vLLM assigns adapters to the tokens of all tiles that it passes in."""
    model = load_model(
        checkpoint,
        enable_lora=True,
        enable_tower_connector_lora=True,
        additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
    )
    sizes = record_sizes(model)
    assert model.tile_reuse is None
    found = embed(model, 1, 1, 2)
    assert sizes == [3]
    assert_equal(found, encode_all(model, 1, 1, 2))


def test_adapters_on_the_language_model_keep_reuse(load_model, checkpoint):
    assert load_model(checkpoint, enable_lora=True).tile_reuse is not None


@pytest.mark.parametrize("most", [1, 2, 5])
def test_tiles_are_encoded_in_parts(load_model, checkpoint, plain, most):
    config = {"nemotron_vl": {"max_encoder_tiles": most}}
    model = load_model(checkpoint, additional_config=config)
    sizes = record_sizes(model)
    kinds = (1, 2, 3, 4, 5)
    assert_equal(embed(model, *kinds), encode_all(plain, *kinds))
    assert max(sizes) == most and sum(sizes) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tile_cache_mb": -1}, "tile_cache_mb must be a whole number of at least 0"),
        ({"tile_cache_mb": "512"}, "but is '512'"),
        ({"tile_cache_mb": True}, "but is True"),
        ({"max_encoder_tiles": 0}, "max_encoder_tiles must be .* at least 1"),
        ({"cache": 1}, r"unknown nemotron_vl settings \['cache'\]; known are"),
        (5, "nemotron_vl must be an object, but is 5"),
    ],
)
def test_wrong_settings_are_named_at_start(checkpoint, given, message):
    options = EngineArgs(
        model=str(checkpoint), additional_config={"nemotron_vl": given}
    )
    with pytest.raises(ValueError, match=message):
        options.create_engine_config()


def test_settings_of_other_plugins_are_left_alone():
    config = VllmConfig(additional_config={"another": {"a": 1}})
    assert EncoderConfig.from_vllm_config(config) == EncoderConfig()
    assert ImageConfig.from_vllm_config(config) == ImageConfig()


def test_counts_reach_a_multiprocess_metrics_folder(tmp_path, monkeypatch):
    """vLLM collects the metrics of all processes there, also those of a worker."""
    code = (
        "import torch; from vllm_nemotron_vl.model_executor.models."
        "nemotron_vl_reuse import TileReuse; "
        "reuse = TileReuse(torch.empty(0, 64, 64)); "
        "reuse(lambda x: x.float().mean(1), torch.zeros(3, 3, 64, 64), "
        "torch.ones(3, 16, dtype=torch.uint8))"
    )
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(metrics))
    run_forked(exec, code, {}, output=tmp_path / "said.txt")
    found = generate_latest(get_prometheus_registry()).decode()
    assert 'vllm:mm_tiles_total{outcome="encoded"} 1.0' in found
    assert 'vllm:mm_tiles_total{outcome="repeated"} 2.0' in found
    assert 'outcome="cached"' not in found  # there is no cache


def means(pixels: torch.Tensor) -> torch.Tensor:
    """Takes the place of the encoder."""
    return pixels.float().mean(1)


def test_counts_are_logged_at_intervals(monkeypatch):
    lines = []
    monkeypatch.setattr(
        nemotron_vl_reuse.logger, "info", lambda text, *args: lines.append(text % args)
    )
    reuse = TileReuse(torch.empty(0, 64, 64))
    for _ in range(3):
        reuse(means, tiles(1, 1), digests(tiles(1, 1)))
    assert lines == ["Tiles: 2 received, 1 encoded, 1 repeated, 0 cached."]
    monkeypatch.setattr(nemotron_vl_reuse, "_LOG_SECONDS", 0.0)
    reuse(means, tiles(1, 1), digests(tiles(1, 1)))
    assert lines[1] == "Tiles: 8 received, 4 encoded, 4 repeated, 0 cached."


def test_a_plan_says_where_each_embedding_comes_from():
    reuse = TileReuse(torch.empty(2, 64, 64))
    reuse(means, tiles(1, 2), digests(tiles(1, 2)))
    wanted = digests(tiles(3, 1, 3, 4, 4, 2))
    wanted[3:5] = 0  # never shared
    plan = reuse.plan(wanted)
    assert plan.encode == [0, 3, 4]
    assert plan.row_of == {0: 0, 2: 0, 3: 1, 4: 2}
    assert plan.slot_of == {1: 0, 5: 1}
    assert plan.new == {bytes(wanted[0].tolist()): 0}


def test_a_tile_whose_encoding_failed_is_not_cached():
    reuse = TileReuse(torch.empty(2, 64, 64))
    pixels = tiles(1)
    with pytest.raises(RuntimeError, match="out of memory"):
        reuse(
            lambda x: (_ for _ in ()).throw(RuntimeError("out of memory")),
            pixels,
            digests(pixels),
        )
    assert torch.equal(reuse(means, pixels, digests(pixels)), means(pixels))


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_rank_counts_and_the_first_stage_caches(
    checkpoint, monkeypatch, stage, rank
):
    group, module = SimpleNamespace(is_first_rank=stage == 0), nemotron_vl_reuse
    monkeypatch.setattr(module, "get_pp_group", lambda: group)
    monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
    settings = {"nemotron_vl": {"tile_cache_mb": 1}}
    config = make_config(checkpoint, "float32", additional_config=settings)
    reuse = module.make_tile_reuse(config, (64, 64), tuple)
    assert reuse.slots == (1_000_000 // (4 * 64 * 64) if stage == 0 else 0)
    reuse(means, tiles(1), digests(tiles(1)))
    assert bool(reuse.counts) == (rank == 0)
