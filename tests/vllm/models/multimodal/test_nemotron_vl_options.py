"""Options of vLLM that do not work together with this model are refused by name."""

import pytest

from nemotron_vl.checkpoints.random_retrieval import make_retrieval_checkpoint
from support.clips import VIDEO
from support.loading import make_config
from vllm_nemotron_vl.config.nemotron_vl_options import graph_tiles

GRAPHS = dict(enforce_eager=False, compilation_config={"cudagraph_mm_encoder": True})
ADAPTERS = dict(enable_lora=True, enable_tower_connector_lora=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (GRAPHS, "--compilation-config.cudagraph_mm_encoder"),
        (
            dict(tensor_parallel_size=2, mm_encoder_tp_mode="data"),
            "--mm-encoder-tp-mode data",
        ),
        (dict(enable_mm_embeds=True), "--enable-mm-embeds"),
        (dict(hf_overrides=VIDEO), "videos"),
    ],
    ids=["graphs", "data parallel", "embeddings", "videos"],
)
def test_adapters_on_the_encoder_are_refused_where_vllm_would_mix_them_up(
    checkpoint, options, named
):
    with pytest.raises(ValueError, match="--enable-tower-connector-lora") as refusal:
        make_config(checkpoint, "float32", **ADAPTERS, **options)
    assert f"does not work with {named}" in str(refusal.value).replace("\n", " ")
    if "hf_overrides" in options:
        options = {**options, "limit_mm_per_prompt": {"video": 0}}
        assert make_config(checkpoint, "float32", **ADAPTERS, **options)
    if "mm_encoder_tp_mode" in options:
        options = dict(mm_encoder_tp_mode="data")  # one rank encodes all tiles
        assert make_config(checkpoint, "float32", **ADAPTERS, **options)


@pytest.mark.parametrize("role", ["ec_producer", "ec_both", "ec_consumer"])
def test_a_pipeline_of_an_engine_that_only_encodes_is_refused(checkpoint, role):
    """Its second rank would wait for the first one for ever."""
    options = dict(
        pipeline_parallel_size=2,
        ec_transfer_config={"ec_connector": "ECExampleConnector", "ec_role": role},
    )
    if role == "ec_producer":
        with pytest.raises(ValueError, match="no language model to divide"):
            make_config(checkpoint, "float32", **options)
        with pytest.raises(ValueError, match="no language model to divide"):
            make_config(
                checkpoint, "float32", pipeline_parallel_size=2, mm_encoder_only=True
            )
    else:
        assert make_config(checkpoint, "float32", **options)


def test_what_is_switched_off_is_not_refused(checkpoint):
    """No graphs, and so no attention of a tower, where there are no images."""
    off = dict(limit_mm_per_prompt={"image": 0})
    config = make_config(checkpoint, "float32", **off, **ADAPTERS, **GRAPHS)
    assert not config.compilation_config.cudagraph_mm_encoder
    attention = dict(mm_encoder_attn_backend="FLASHINFER")
    assert make_config(checkpoint, "float32", **off, **attention)
    with pytest.raises(ValueError, match="FLASHINFER does not work"):
        make_config(checkpoint, "float32", **attention)


def test_without_images_ranks_share_no_tower(tmp_path):
    make_retrieval_checkpoint(
        tmp_path / "heads", ranks=False, vision_options={"num_attention_heads": 1}
    )
    two = dict(tensor_parallel_size=2)
    off = dict(limit_mm_per_prompt={"image": 0})
    assert make_config(tmp_path / "heads", "float32", **two, **off)
    with pytest.raises(ValueError, match="vision_config.num_attention_heads = 1 is"):
        make_config(tmp_path / "heads", "float32", **two)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(mm_encoder_attn_backend="FLASHINFER"), "FLASHINFER does not work"),
        (dict(tensor_parallel_size=3), "not divisible by 3 ranks"),
        (ADAPTERS | GRAPHS, "does not work with --compilation-config.cudagraph"),
    ],
    ids=["attention", "ranks", "graphs"],
)
@pytest.mark.parametrize("kind", ["embed", "rerank"])
def test_models_that_find_and_rank_pages_have_the_same_checks(
    request, kind, options, said
):
    with pytest.raises(ValueError, match=said):
        make_config(request.getfixturevalue(f"{kind}_checkpoint"), "float32", **options)


def test_vllm_refuses_graphs_of_the_language_model_alone(checkpoint):
    with pytest.raises(ValueError, match="--language-model-only is incompatible"):
        make_config(checkpoint, "float32", language_model_only=True, **GRAPHS)


@pytest.mark.parametrize("overrides", [{}, VIDEO], ids=["images", "videos"])
def test_an_api_server_without_our_renderer_is_refused(
    checkpoint, overrides, monkeypatch
):
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="VLLM_USE_RUST_FRONTEND replaces"):
        make_config(checkpoint, "float32", hf_overrides=overrides)


@pytest.mark.parametrize(
    ("largest_image", "largest_batch", "expected"),
    [
        (13, 8, [1, 3, 5, 7, 9, 13]),
        (13, 32, [1, 3, 5, 7, 9, 13, 26]),
        (1, 8, [1, 2, 4, 8]),
        (1, 2048, [1, 2, 4, 8, 16]),
        (7, 64, [1, 3, 5, 7, 14]),
        (5, 8, [1, 3, 5]),
        (41, 64, [1, 3, 5, 7, 9, 13, 19, 27, 38, 41]),
    ],
)
def test_sizes_of_graphs(largest_image, largest_batch, expected):
    assert graph_tiles(largest_image, largest_batch) == expected
