"""Two ranks give the answers of one, and data-parallel shards the tiles."""

import pytest
from PIL import Image
from vllm import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


TILE_CACHE = {"nemotron_vl": {"tile_cache_mb": 1}}


def changed(photo: Image.Image) -> Image.Image:
    """Another corner: one tile and the thumbnail differ."""
    copy = photo.copy()
    copy.paste("red", (0, 0, 20, 20))
    return copy


@pytest.fixture(scope="module")
def prompts(photo, page):
    return [
        {"prompt": "<image>\nRead.", "multi_modal_data": {"image": [photo]}},
        {"prompt": "a<image>b<image>", "multi_modal_data": {"image": [page, photo]}},
        {"prompt": "Hello"},
        {"prompt": "<image>\nRead.", "multi_modal_data": {"image": [changed(photo)]}},
    ]


def answers(llm, prompts) -> list[list[int]]:
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def expected(make_llm, checkpoint, prompts):
    return answers(make_llm(checkpoint, dtype="float32"), prompts)


def _count_tiles(model) -> None:
    model.tiles_seen = []
    model.vision_model.register_forward_pre_hook(
        lambda module, inputs: model.tiles_seen.append(len(inputs[0]))
    )


def _tiles_seen(model) -> list[int]:
    return model.tiles_seen


def _reuse(model) -> dict[str, int]:
    return dict(model.tile_reuse.counts)


@pytest.mark.parametrize("mode", ["weights", "data"])
def test_tensor_and_encoder_data_parallel(
    make_llm, checkpoint, prompts, expected, monkeypatch, mode
):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # one core for each rank
    llm = make_llm(
        checkpoint,
        dtype="float32",
        tensor_parallel_size=2,
        mm_encoder_tp_mode=mode,
        additional_config=TILE_CACHE,
    )
    llm.apply_model(_count_tiles)
    assert answers(llm, prompts[:1]) == expected[:1]
    (first, second) = llm.apply_model(_tiles_seen)
    # The photo has 13 tiles; data parallel pads them to 14 and halves them.
    assert first == second == ([13] if mode == "weights" else [7])
    assert answers(llm, prompts) == expected
    # 13 tiles of the photo, 11 of the page, 2 of the changed photo.
    counts, elsewhere = llm.apply_model(_reuse)
    assert (counts["encoded"], counts["cached"]) == (13 + 11 + 2, 11)
    assert not elsewhere  # one rank counts


def test_pipeline_parallel(make_llm, checkpoint, prompts, expected, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    llm = make_llm(
        checkpoint,
        dtype="float32",
        pipeline_parallel_size=2,
        enforce_eager=False,  # vLLM's CPU runner has no pipelines in eager mode
        additional_config=TILE_CACHE,
    )
    assert answers(llm, prompts) == expected
