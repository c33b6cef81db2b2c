"""What is wrong with a tensor of a checkpoint, by its name, shape and dtype."""

import pytest

from vllm_nemotron_vl.model_executor.models.nemotron_vl_layout import tensor_problem

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
