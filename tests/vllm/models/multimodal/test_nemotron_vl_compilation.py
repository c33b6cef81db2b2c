"""`compile_mm_encoder` compiles the tower's blocks, once for all numbers of tiles."""

import pytest
import torch
from torch._dynamo.utils import counters
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from support.loading import make_config
from vllm_nemotron_vl.model_executor.models import (
    nemotron_vl_blocks,
    nemotron_vl_tower,
)
from vllm_nemotron_vl.model_executor.models.nemotron_vl_attention import (
    HeadwiseAttention,
)

COMPILED = dict(enforce_eager=False, compilation_config={"compile_mm_encoder": True})
SIDE = 192  # 152 tokens a tile, so that attention is head by head where it can be


# vLLM 0.31 describes its attention to the compiler with a parameter too many.
needs_sdpa = pytest.mark.skipif(
    not nemotron_vl_blocks._sdpa_compiles(),
    reason="The compiler cannot trace this vLLM's attention on CPUs.",
)


@pytest.fixture(scope="module")
def one_block(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "one_block"
    make_checkpoint(path, tower_layers=1, layers=1, tile_size=SIDE)
    return path


def features(model, tiles: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tiles)
    shape = (tiles, 3, SIDE, SIDE)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    model.max_encoder_tiles = tiles
    return model.extract_feature(pixels).double()


def blocks(model):
    return model.vision_model.model.encoder.layers


@needs_sdpa
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_are_as_exact_as_others(
    load_model, one_block, dtype, native_products
):
    eager = load_model(one_block, dtype)
    compiled = load_model(one_block, dtype, **COMPILED)
    headwise = isinstance(blocks(compiled)[0].attn.attn, HeadwiseAttention)
    assert headwise == (dtype == "bfloat16")
    # A first forward with one tile must not make a graph for one tile only.
    found = {tiles: features(compiled, tiles) for tiles in (1, 3, 13)}
    assert [block.compiled for block in blocks(compiled)] == [True]
    assert not any(getattr(block, "compiled", False) for block in blocks(eager))
    exact = load_model(one_block, "float32")
    for tiles, values in found.items():
        expected = features(exact, tiles)
        tolerance = 1.02 * (features(eager, tiles) - expected).norm()
        tolerance += 2e-6 * expected.norm()  # other order of sums
        assert (values - expected).norm() <= tolerance


@needs_sdpa
def test_no_number_of_tiles_compiles_again(load_model, one_block):
    model = load_model(one_block, "float32", **COMPILED)
    graphs = counters["stats"]["unique_graphs"]
    for tiles in (2, 1, 5, 16):
        features(model, tiles)
    assert counters["stats"]["unique_graphs"] == graphs + 1


def test_where_the_compiler_cannot_trace_attention(load_model, checkpoint, monkeypatch):
    """On vLLM 0.31; and here, as if it were there."""
    said: list[str] = []
    monkeypatch.setattr(nemotron_vl_tower.logger, "warning_once", said.append)
    monkeypatch.setattr(nemotron_vl_blocks, "_sdpa_compiles", lambda: False)
    model = load_model(checkpoint, **COMPILED)
    assert said == [
        "compile_mm_encoder has no effect with TORCH_SDPA in this release of vLLM."
    ]
    assert all(block.do_not_compile for block in blocks(model))
    config = make_config(checkpoint, "float32", **COMPILED)
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    assert nemotron_vl_blocks.compilation_problem(config) is None
    options = config.model_config.get_multimodal_config()
    options.mm_encoder_attn_backend = AttentionBackendEnum.TORCH_SDPA
    assert nemotron_vl_blocks.compilation_problem(config) == said[0]


@needs_sdpa
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(enforce_eager=True), "compilation mode NONE."),
        (
            dict(enable_lora=True, enable_tower_connector_lora=True),
            "--enable-tower-connector-lora.",
        ),
    ],
)
def test_a_line_says_what_it_has_no_effect_with(
    load_model, checkpoint, monkeypatch, options, reason
):
    said: list[str] = []
    monkeypatch.setattr(nemotron_vl_tower.logger, "warning_once", said.append)
    load_model(checkpoint)
    load_model(checkpoint, compilation_config={"compile_mm_encoder": False}, **options)
    assert not said
    model = load_model(checkpoint, **{**COMPILED, **options})
    assert said == [f"compile_mm_encoder has no effect with {reason}"]
    assert all(block.do_not_compile for block in blocks(model))
