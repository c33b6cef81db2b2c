"""Encoder graphs, by vLLM's own manager; only ``CUDAGraph`` is a stand-in."""

import multiprocessing
import os
import traceback
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel

from support.encoder_graphs import graphs
from support.forked import preload
from support.loading import load, make_config
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import EMBEDS, NUM_TILES
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_digest import (
    tile_digests,
)

GRAPHS = dict(enforce_eager=False, compilation_config={"cudagraph_mm_encoder": True})
TOKENS = 4  # of a tile of the random checkpoint


def images(*counts: int, levels: bool = True) -> dict[str, torch.Tensor]:
    """The model's inputs for images of noise with these numbers of tiles."""
    rng = np.random.default_rng(sum(counts))
    pixels = torch.from_numpy(rng.integers(0, 256, (sum(counts), 3, 64, 64), np.uint8))
    digests = tile_digests(pixels.split(counts), [True] * len(counts))
    return {
        "pixel_values_flat": pixels if levels else pixels / 255,
        "image_num_patches": torch.tensor(counts),
        "image_token_id": torch.tensor([1]),
        "tile_digests": digests,
    }


def graphs_of(load_model, checkpoint: Path, **options):
    config = make_config(checkpoint, "float32", **{**GRAPHS, **options})
    model = load_model(checkpoint, **{**GRAPHS, **options})
    return model, graphs(model, config)


def same(found, expected) -> None:
    assert [len(item) for item in found] == [len(item) for item in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on_device", [True, False], ids=["uint8", "float"])
@pytest.mark.parametrize("kind", ["checkpoint", "embed_checkpoint"])
def test_images_in_graphs_and_without_equal_those_of_the_model(
    load_model, request, kind, on_device
):
    """Of pixels as levels, and as fractions of 1."""
    model, manager = graphs_of(
        load_model,
        request.getfixturevalue(kind),
        mm_device_do_normalize=on_device,
        compilation_config={
            "cudagraph_mm_encoder": True,
            "encoder_cudagraph_token_budgets": [TOKENS, 5 * TOKENS],
        },
    )
    for counts in ([3, 1, 1, 2], [5, 13, 4], [1], [2, 2, 2, 2]):
        inputs = images(*counts, levels=on_device)
        expected = model.embed_multimodal(**inputs)
        same(manager.execute(inputs), expected)
    assert (manager.graph_hits, manager.graph_misses) == (11, 1)


def test_images_that_fit_no_graph_are_encoded_once(load_model, checkpoint):
    """Each distinct tile of them, within a step and across steps."""
    model, manager = graphs_of(
        load_model,
        checkpoint,
        additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
        compilation_config={
            "cudagraph_mm_encoder": True,
            "encoder_cudagraph_token_budgets": [TOKENS],
        },
    )
    inputs = images(3, 4)
    inputs["pixel_values_flat"][4:6] = inputs["pixel_values_flat"][3]
    inputs["tile_digests"][4:6] = inputs["tile_digests"][3]
    first = manager.execute(inputs)
    assert model.tile_reuse.counts == {"encoded": 5, "repeated": 2, "cached": 0}
    same(manager.execute(inputs), first)
    assert model.tile_reuse.counts["cached"] == 7
    same(
        first,
        model.extract_feature(inputs["pixel_values_flat"])
        .flatten(0, 1)
        .split([12, 16]),
    )


def test_embeddings_of_a_request_pass(load_model, checkpoint):
    """Of one size in one tensor, and of several sizes, in any dtype."""
    _, manager = graphs_of(load_model, checkpoint, enable_mm_embeds=True)
    alike = torch.rand(2, 8, 256, dtype=torch.float64)
    mixed = [torch.rand(12, 256), torch.rand(4, 256), torch.rand(200, 256)]
    for embeddings in (alike, mixed):
        found = manager.execute({EMBEDS: embeddings})
        same(found, [item.float() for item in embeddings])
        assert all(item.dtype == torch.float32 for item in found)


def test_lost_embeddings_are_explained(load_model, checkpoint):
    _, manager = graphs_of(load_model, checkpoint)
    with pytest.raises(RuntimeError, match="EC connector has lost the embeddings"):
        manager.execute({NUM_TILES: torch.tensor([3])})


def test_sizes_of_graphs_follow_the_settings(checkpoint):
    """The user's own come first."""

    def budgets(**options) -> list[int]:
        config = make_config(checkpoint, "float32", **{**GRAPHS, **options})
        return config.compilation_config.encoder_cudagraph_token_budgets

    tiles = [1, 3, 5, 7, 9, 13, 26]
    assert budgets() == [TOKENS * count for count in tiles]
    assert budgets(max_num_batched_tokens=100)[-1] == 13 * TOKENS
    few = {"max_dynamic_patch": 6}
    assert budgets(mm_processor_kwargs=few)[-2:] == [7 * TOKENS, 14 * TOKENS]
    assert budgets(max_model_len=7 * TOKENS + 2)[-2:] == [7 * TOKENS, 14 * TOKENS]
    with pytest.raises(ValueError, match="max_dynamic_patch must be a whole number"):
        budgets(mm_processor_kwargs={"max_dynamic_patch": "12"})
    own = {"cudagraph_mm_encoder": True, "encoder_cudagraph_token_budgets": [40]}
    assert budgets(compilation_config=own) == [40]
    assert budgets(enforce_eager=True) == []


def test_sizes_of_graphs_follow_processor_config(embed_checkpoint):
    """Of the model that finds pages: six tiles and a thumbnail."""
    config = make_config(embed_checkpoint, "float32", **GRAPHS)
    found = config.compilation_config.encoder_cudagraph_token_budgets
    assert found == [tiles * TOKENS for tiles in (1, 3, 5, 7, 14)]


@pytest.mark.parametrize("kind", ["checkpoint", "embed_checkpoint"])
def test_there_are_no_graphs_without_images(request, kind):
    config = make_config(
        request.getfixturevalue(kind),
        "float32",
        enable_mm_embeds=True,
        limit_mm_per_prompt={"image": 0},
        **GRAPHS,
    )
    assert not config.compilation_config.cudagraph_mm_encoder


# Two ranks that share out the images


def _encode(rank: int, checkpoint: Path, meeting: str, options: dict, batches, answers):
    os.environ["VLLM_DIST_IDENT"] = Path(meeting).name  # as vLLM's executor does
    try:
        config = make_config(
            checkpoint, "float32", tensor_parallel_size=2, **{**GRAPHS, **options}
        )
        with set_current_vllm_config(config), torch.inference_mode():
            init_distributed_environment(2, rank, meeting, rank, "gloo")
            initialize_model_parallel(2)
            model = load(config)
            manager = graphs(model, config)
            found = [manager.execute(batch) for batch in batches]
            answers.put((rank, [[item.numpy() for item in batch] for batch in found]))
    except BaseException:
        answers.put((rank, traceback.format_exc()))


@pytest.mark.parametrize("mode", ["data", "weights"])
def test_two_ranks(load_model, checkpoint, tmp_path, mode):
    """Both get the embeddings of all images, also of one image and of large ones."""
    options = dict(
        mm_encoder_tp_mode=mode,
        additional_config={"nemotron_vl": {"tile_cache_mb": 1}},
        compilation_config={
            "cudagraph_mm_encoder": True,
            "encoder_cudagraph_token_budgets": [TOKENS, 5 * TOKENS],
        },
    )
    counts = [[4, 4], [3], [1, 13, 2], [6, 6, 6]]
    batches = [images(*count) for count in counts]
    # Again: their tiles are in a cache now, if there is one.
    batches.append(images(6, 6, 6))
    batches.append({EMBEDS: [torch.rand(8, 256), torch.rand(4, 256)]})
    context = multiprocessing.get_context("forkserver")
    preload()
    answers = context.Queue()
    name = f"graphs-{uuid.uuid4().hex}"
    meeting = f"file://{tmp_path / name}"
    ranks = [
        context.Process(
            target=_encode,
            args=(rank, checkpoint, meeting, options, batches, answers),
            daemon=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    try:
        found = dict(answers.get(timeout=240) for _ in ranks)
    finally:
        for rank in ranks:
            rank.kill()
        for segment in Path("/dev/shm").glob(f"{name}*"):
            segment.unlink()
    plain = load_model(checkpoint)
    expected = [
        batch[EMBEDS] if EMBEDS in batch else plain.embed_multimodal(**batch)
        for batch in batches
    ]
    for answer in found.values():
        assert not isinstance(answer, str), answer
        for batch, its_expected in zip(answer, expected, strict=True):
            same([torch.from_numpy(item) for item in batch], its_expected)
