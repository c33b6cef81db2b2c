"""`nemotron-vl verify` compares an engine with the reference and names wrong stages."""

import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from vllm.config import set_current_vllm_config

from nemotron_vl.verify import comparison
from nemotron_vl.verify.comparison import OPTIONS, compare
from nemotron_vl.verify.documents import draw_numbers
from nemotron_vl.verify.expected import write_expected
from nemotron_vl.verify.images import compared_images
from nemotron_vl.verify.reading import ask_engine, read
from nemotron_vl.verify.speed import measure
from nemotron_vl.verify.stages import BOUNDS, wrong_stages
from nemotron_vl.verify.worker import EncoderComparison
from support.loading import load, make_config
from support.tiny import TILE
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)

IMAGES = ["one tile", "price", "equal tiles", "receipt.jpg", "chart.png"]

# A module whose output is changed, and the stage that is then wrong.
BROKEN = {
    "normalised pixels": "input_conditioner",
    "tower": "vision_model.model.encoder.layers.1.norm2",
    "connector": "mlp1.0",
    "language model": "language_model.model.norm",
}


@pytest.fixture(scope="module")
def images() -> dict[str, Image.Image]:
    return compared_images(TILE, IMAGES)


@pytest.fixture(scope="module")
def expected(tiny, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    write_expected(tiny, "float32", "cpu", images, folder)
    return folder


@pytest.fixture(scope="module")
def llm(make_llm, tiny):
    return make_llm(tiny, dtype="float32", **OPTIONS)


@pytest.fixture
def wrong(llm, images, expected) -> Callable[[], list]:
    def rows() -> list:
        not_run: list[str] = []
        found = [*compare(llm, "float32", "eager", images, expected, not_run)]
        assert not_run == []
        return found

    return rows


def test_a_sound_engine_agrees_in_all_stages(wrong):
    rows = wrong()
    assert [row for row in rows if not row.ok] == []
    assert {row.stage for row in rows} == {*BOUNDS} - {
        "normalised pixels, no fused kernel"
    }
    assert {row.image for row in rows} == {*IMAGES}
    assert {row.engine for row in rows} == {
        "eager",
        "eager, tiles from the cache",
        "eager, no tile reuse",
    }
    # The pixels of both recipes differ, so the comparison has seen both.
    assert max(row.error for row in rows if row.stage == "pixels, fast") > 0


@pytest.mark.parametrize("stage", BROKEN)
def test_another_norm_is_named(llm, wrong, stage):
    name = BROKEN[stage]

    def change(module, arguments, output):
        if isinstance(output, tuple):
            return (output[0] * 1.02, *output[1:])
        return output * 1.02

    def break_it(model) -> None:
        model.tile_reuse.clear()
        model.handle = model.get_submodule(name).register_forward_hook(change)

    def fix(model) -> None:
        model.tile_reuse.clear()
        model.handle.remove()

    llm.apply_model(break_it)
    try:
        assert wrong_stages(wrong()) == [stage]
    finally:
        llm.apply_model(fix)


def test_swapped_tiles_are_named(wrong, monkeypatch):
    cut = NemotronVLImageProcessor.__call__

    def swapped(self, *args, **kwargs):
        features = cut(self, *args, **kwargs)
        features["pixel_values_flat"] = features["pixel_values_flat"].flip(0)
        return features

    monkeypatch.setattr(NemotronVLImageProcessor, "__call__", swapped)
    assert wrong_stages(wrong()) == ["pixels, exact", "pixels, fast"]


def test_another_prompt_is_named(wrong, monkeypatch):
    monkeypatch.setattr(comparison, "prompt", lambda: "<image>\nRead the text.")
    assert wrong_stages(wrong()) == ["prompt", "language model"]


def test_a_damaged_tile_cache_is_seen_where_it_is_used(llm, wrong):
    def damage(model) -> None:
        """What is there when a forward begins."""
        reuse = model.tile_reuse
        reuse._count = lambda **tiles: (
            reuse._cache.mul_(1.5),
            type(reuse)._count(reuse, **tiles),
        )

    def fix(model) -> None:
        del model.tile_reuse._count
        model.tile_reuse.clear()

    llm.apply_model(lambda model: model.tile_reuse.clear())
    llm.apply_model(damage)
    try:
        rows = wrong()
    finally:
        llm.apply_model(fix)
    assert wrong_stages(rows)[0] == "first token"
    assert {row.engine for row in rows if not row.ok} == {"eager, tiles from the cache"}


def test_passes_that_reuse_other_tiles_than_their_name_says_are_not_compared(
    llm, images, expected, monkeypatch
):
    def shrink(model) -> None:
        reuse = model.tile_reuse
        reuse.clear()
        model.whole, reuse._cache = reuse._cache, reuse._cache[:2]

    def fix(model) -> None:
        model.tile_reuse.clear()
        model.tile_reuse._cache = model.whole

    monkeypatch.setattr(comparison, "NO_REUSE", "another key")
    not_run: list[str] = []
    llm.apply_model(shrink)
    try:
        rows = [*compare(llm, "float32", "eager", images, expected, not_run)]
    finally:
        llm.apply_model(fix)
    assert {row.engine for row in rows} == {"eager"}
    cached, fresh = not_run
    assert re.fullmatch(
        r"float32, eager, tiles from the cache: only \d+ of \d+ tiles .*", cached
    )
    assert re.fullmatch(r"float32, eager, no tile reuse: \d+ of \d+ tiles .*", fresh)


def _runner_v1(config, model):
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    runner = object.__new__(GPUModelRunner)
    vars(runner).update(
        encoder_cudagraph_manager=None,
        supports_mm_inputs=True,
        compilation_config=config.compilation_config,
        vllm_config=config,
        model=model,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    runner._maybe_init_encoder_cudagraph_manager()
    return runner, runner.encoder_cudagraph_manager


def _runner_v2(config, model):
    from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.model_states import init_model_state

    runner = object.__new__(GPUModelRunner)
    device = torch.device("cpu")
    runner.model_state = init_model_state(config, model, EncoderCache(), device)
    return runner, runner.model_state.encoder_runner.cudagraph_manager


@pytest.mark.parametrize("make_runner", [_runner_v1, _runner_v2])
def test_images_in_graphs_are_counted_on_both_model_runners(tiny, make_runner):
    """On vLLM's own runner and manager. Nothing is captured: that needs a GPU."""
    graphs = {"cudagraph_mm_encoder": True}
    config = make_config(tiny, "float32", compilation_config=graphs)
    config.model_config.enforce_eager = False
    with set_current_vllm_config(config):
        model = load(config)
        runner, manager = make_runner(config, model)
    worker = EncoderComparison()
    worker.model_runner, worker.get_model = runner, lambda: model
    before = Counter(worker.nemotron_vl_tile_outcomes())
    assert before["graphs"] == 0
    manager.graph_hits += 3
    ways = Counter(worker.nemotron_vl_tile_outcomes()) - before
    assert ways == {"graphs": 3}
    assert comparison._no_graph(ways) is None
    assert comparison._no_cache(ways) == comparison._reuse(ways)
    assert "CUDA graph" in comparison._reuse(ways)


def test_only_the_first_token_has_all_logits(llm, images):
    """Those of 16 tokens of a large vocabulary would take gigabytes."""
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    first, answer = comparison._generate(llm, images, tokens=5)["price"]
    assert len(comparison._logits(first)) == vocabulary
    assert not answer.outputs[0].logprobs
    assert len(answer.outputs[0].token_ids) == 5
    assert answer.outputs[0].token_ids[0] == first.outputs[0].token_ids[0]


def test_it_reads_and_says_what_was_wrong(llm):
    reading = read(ask_engine(llm), draw_numbers(20))
    found = reading.as_dict()
    assert found["accuracy"] == reading.accuracy >= 0.7
    assert len(found["wrong"]) == 20 - sum(reading.rights)
    assert sum(k["questions"] for k in found["by_kind"].values()) == 20
    for wrong in found["wrong"]:
        assert wrong["answer"] != wrong["right"]


def test_it_measures_pages_whose_tiles_no_cache_has(llm):
    (before,) = llm.collective_rpc("nemotron_vl_tile_outcomes")
    # So many tokens take longer than the time to the first one varies.
    found = measure(llm, rounds=2, tokens=64, pages=4)
    (after,) = llm.collective_rpc("nemotron_vl_tile_outcomes")
    assert after["encoded"] > before["encoded"]
    assert after["cached"] == before["cached"]
    for name in ("first_token_ms", "tokens_per_s", "pages_per_s", "batch_tokens_per_s"):
        assert found[name] > 0, name
    (memory,) = found["memory_gb"]
    assert 0.5 < memory < 64
