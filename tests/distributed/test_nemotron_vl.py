"""Two ranks give the answers of one, and data-parallel shards the tiles."""

from collections import Counter

import pytest
from PIL import Image
from vllm import SamplingParams

from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.inspect_model import PARTS, inspect

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


REUSE = {"nemotron_vl": {"tile_cache_mb": 1, "max_encoder_tiles": 16}}


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


def _slots(model) -> int:
    return model.tile_reuse.slots


def _count_parameters(model) -> dict[str, int]:
    """Parameters by part; vLLM's CPU kernels empty those of linear layers."""
    from vllm.model_executor.layers.linear import LinearBase

    counts: Counter[str] = Counter()
    for name, module in model.named_modules():
        part = next((p for p, prefix in PARTS.items() if name.startswith(prefix)), "")
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, LinearBase):
            own.pop("weight")
            inputs = getattr(module, "input_size_per_partition", module.input_size)
            outputs = getattr(module, "output_size_per_partition", module.output_size)
            counts[part] += inputs * outputs
        counts[part] += sum(parameter.numel() for parameter in own.values())
    return {part: counts[part] for part in PARTS}


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
        additional_config=REUSE,
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

    told = inspect(str(checkpoint), tp=2, encoder_data_parallel=mode == "data")
    expected_counts = {p: told["parts"][p]["rank_parameters"] for p in PARTS}
    assert llm.apply_model(_count_parameters) == [expected_counts] * 2


def test_pipeline_parallel(make_llm, checkpoint, prompts, expected, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    llm = make_llm(
        checkpoint,
        dtype="float32",
        pipeline_parallel_size=2,
        enforce_eager=False,  # vLLM's CPU runner has no pipelines in eager mode
        additional_config=REUSE,
    )
    assert answers(llm, prompts) == expected
    # The cache is where pictures are encoded: a tile is 4 x 256 float32 values.
    assert llm.apply_model(_slots) == [1_000_000 // (4 * 4 * 256), 0]
