"""Two ranks give the reference's tokens; in mode "data" they share out the tiles."""

import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from vllm import SamplingParams

from nemotron_vl.checkpoints.inspection import PARTS, inspect
from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.reference import Reference
from support.clips import VIDEO, encoded, noise
from support.engines import answers, count_parameters
from support.loading import make_config
from support.tiny import TILE_TOKENS, WIDTH
from vllm_nemotron_vl.model_executor.models import nemotron_vl_reload

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


REUSE = {"nemotron_vl": {"tile_cache_mb": 1, "max_encoder_tiles": 16}}


def changed(photo: Image.Image) -> Image.Image:
    """Change a corner, so that only one tile and the thumbnail differ."""
    copy = photo.copy()
    copy.paste("red", (0, 0, 20, 20))
    return copy


@pytest.fixture(scope="module")
def prompts(photo, page):
    """One image, two images, none, and an image that shares tiles with the first."""
    page = page.convert("RGB")
    return [
        ("<image>\nRead.", [photo]),
        ("a<image>b<image>", [page, photo]),
        ("Hello", []),
        ("<image>\nRead.", [changed(photo)]),
    ]


def reference_answers(folder: Path, prompts) -> list[list[int]]:
    reference = Reference.load(folder)
    return [reference.answer(*prompt, GREEDY.max_tokens)[1] for prompt in prompts]


@pytest.fixture(scope="module")
def expected(tiny, prompts):
    return reference_answers(tiny, prompts)


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


@pytest.mark.parametrize("mode", ["weights", "data"])
def test_tensor_and_encoder_data_parallel(
    start_llm, tiny, page, prompts, expected, monkeypatch, mode
):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # one core for each rank
    llm = start_llm(
        tiny,
        dtype="float32",
        tensor_parallel_size=2,
        mm_encoder_tp_mode=mode,
        additional_config=REUSE,
    )
    llm.apply_model(_count_tiles)
    assert answers(llm, prompts[:1], GREEDY) == expected[:1]
    (first, second) = llm.apply_model(_tiles_seen)
    # The photo has 13 tiles. Mode "data" pads them to 14 and gives each rank 7.
    assert first == second == ([13] if mode == "weights" else [7])
    assert answers(llm, prompts, GREEDY) == expected
    # Of the photo, of the page and of the changed photo.
    columns, rows = Reference.load(tiny).choose_grid(*page.size)
    counts, elsewhere = llm.apply_model(_reuse)
    encoded = 13 + (columns * rows + 1) + 2
    assert (counts["encoded"], counts["cached"]) == (encoded, 11)
    assert not elsewhere  # only the first rank counts

    told = inspect(str(tiny), tp=2, encoder_data_parallel=mode == "data")
    expected_counts = {p: told["parts"][p]["rank_parameters"] for p in PARTS}
    assert llm.apply_model(count_parameters) == [expected_counts] * 2


@pytest.mark.releases
def test_encoder_data_parallel_shares_the_frames_of_a_video(
    start_llm, tiny, monkeypatch
):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # one core for each rank
    llm = start_llm(
        tiny,
        dtype="float32",
        hf_overrides=VIDEO,
        tensor_parallel_size=2,
        mm_encoder_tp_mode="data",
    )
    llm.apply_model(_count_tiles)
    frames, text = noise(9), "<img></img>\nRead the text."
    prompt = {"prompt": text, "multi_modal_data": {"video": encoded(frames)}}
    (output,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    assert [*map(sum, llm.apply_model(_tiles_seen))] == [5, 5]  # one is padding
    reference = Reference.load(tiny)
    expected = reference.answer(text, [], GREEDY.max_tokens, [frames])[1]
    assert list(output.outputs[0].token_ids) == expected


def _refuse_files_on_the_second_rank(worker) -> None:
    def refuse(config):
        raise ValueError("refused")

    if worker.rank == 1:
        nemotron_vl_reload.get_model_loader = refuse


def _reload(worker, path: str) -> str:
    try:
        worker.reload_weights(weights_path=path)
    except ValueError as error:
        return str(error)
    return "reloaded"


def test_pipeline_parallel(start_llm, tiny, prompts, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    llm = start_llm(
        tiny,
        dtype="float32",
        pipeline_parallel_size=2,
        enforce_eager=False,  # in eager mode vLLM's CPU runner has no pipelines
        additional_config=REUSE,
    )
    assert answers(llm, prompts, GREEDY) == expected
    # Only the first stage encodes images and has a cache of float32 values.
    assert llm.apply_model(_slots) == [1_000_000 // (4 * TILE_TOKENS * WIDTH), 0]
    # Files that one rank refuses replace the weights of none.
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    (file,) = other.glob("*.safetensors")
    save_file({n: t + 1 for n, t in load_file(file).items()}, file)
    llm.collective_rpc(_refuse_files_on_the_second_rank)
    said = llm.collective_rpc(_reload, args=(str(other),))
    assert said[0].startswith("Another rank refuses") and said[1] == "refused"
    llm.llm_engine.reset_encoder_cache()
    llm.reset_prefix_cache()
    assert answers(llm, prompts, GREEDY) == expected


def test_heads_that_do_not_divide_by_two_ranks(
    start_llm, tmp_path, prompts, monkeypatch
):
    """Both ranks hold all three heads of the tower, and the only key-value head."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder = tmp_path / "odd"
    vision = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    make_checkpoint(folder, kv_heads=1, vision_options=vision)
    llm = start_llm(folder, dtype="float32", tensor_parallel_size=2)
    assert answers(llm, prompts, GREEDY) == reference_answers(folder, prompts)
    told = inspect(str(folder), tp=2)
    assert not told["problems"]
    expected_counts = {p: told["parts"][p]["rank_parameters"] for p in PARTS}
    assert llm.apply_model(count_parameters) == [expected_counts] * 2


@pytest.mark.parametrize(
    ("sizes", "options", "sentence"),
    [
        ({"projector_hidden_size": 255}, {}, "projector_hidden_size = 255 is not"),
        (
            {"intermediate_size": 511},
            {"mm_encoder_tp_mode": "data"},
            "llm_config.intermediate_size = 511 is not divisible by 2 ranks",
        ),
        ({"heads": 3, "kv_heads": 3}, {}, "num_attention_heads = 3 is not divisible"),
    ],
    ids=["connector", "decoder", "heads"],
)
def test_sizes_that_do_not_divide_by_two_ranks_are_refused(
    tmp_path, sizes, options, sentence
):
    make_checkpoint(tmp_path / "odd", **{"hidden_size": 192, **sizes})
    with pytest.raises(ValueError, match=sentence):
        make_config(tmp_path / "odd", "float32", tensor_parallel_size=2, **options)


def test_a_replicated_connector_may_have_any_width(tmp_path):
    make_checkpoint(tmp_path / "odd", projector_hidden_size=255)
    options = dict(tensor_parallel_size=2, mm_encoder_tp_mode="data")
    assert make_config(tmp_path / "odd", "float32", **options)
