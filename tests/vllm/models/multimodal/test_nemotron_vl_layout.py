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
