"""What is wrong with a tensor of a checkpoint, and with a number of ranks."""

from types import SimpleNamespace

import pytest

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import (
    tensor_parallel_problems,
    tensor_problem,
)

KNOWN = {"mlp1.1.weight": (8, 4)}


@pytest.mark.parametrize(
    ("shape", "is_floating_point", "quantised", "problem"),
    [
        ((8, 4), True, False, None),
        ((8, 2), True, False, "misshapen"),
        ((8, 2), False, False, "misshapen"),
        ((8, 2), True, True, "misshapen"),  # a layer that is not quantised
        ((8, 2), False, True, None),  # packed
    ],
)
def test_only_packed_integers_of_a_quantised_checkpoint_may_have_another_shape(
    shape, is_floating_point, quantised, problem
):
    found = tensor_problem("mlp1.1.weight", shape, is_floating_point, KNOWN, quantised)
    assert found == problem


@pytest.mark.parametrize(
    ("heads", "ranks", "fits"),
    [
        *((2, 1, True), (2, 2, True), (2, 4, True), (4, 2, True)),
        *((3, 2, False), (2, 3, False), (4, 6, False), (6, 4, False)),
    ],
)
def test_key_heads_divide_the_ranks_or_are_divided_by_them(heads, ranks, fits):
    llm = SimpleNamespace(
        num_attention_heads=12, intermediate_size=12, num_key_value_heads=heads
    )
    config = SimpleNamespace(llm_config=llm, vision_config=None)
    problems = tensor_parallel_problems(config, ranks, encoder_data_parallel=True)
    assert bool(problems) != fits
    assert all(f"num_key_value_heads = {heads} neither" in p for p in problems)


@pytest.mark.parametrize(
    ("model_type", "wrong"),
    [
        ("Llama_Nemotron_Nano_VL", "projector_hidden_size = 10"),
        ("llama_nemotron_vl", "vision_config.num_attention_heads = 6"),
        ("llama_nemotron_vl_rerank", "vision_config.num_attention_heads = 6"),
    ],
)
def test_what_ranks_share_of_the_encoder(model_type, wrong):
    """C-RADIO's heads may be whole on each rank, SigLIP's may not."""
    config = SimpleNamespace(
        model_type=model_type,
        llm_config=SimpleNamespace(
            num_attention_heads=8, intermediate_size=8, num_key_value_heads=4
        ),
        vision_config=SimpleNamespace(intermediate_size=8, num_attention_heads=6),
        projector_hidden_size=10,
    )
    assert tensor_parallel_problems(config, 4, encoder_data_parallel=True) == []
    assert tensor_parallel_problems(config, 4, encoder_data_parallel=False) == [
        f"{wrong} is not divisible by 4 ranks."
    ]
