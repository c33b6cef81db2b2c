"""Which releases of vLLM are tested."""

import pytest

from vllm_nemotron_vl.config import nemotron_vl_names as names


@pytest.mark.parametrize(
    "found", ["0.30.9", "0.34.0", "1.0", "dev", "0.33.1.dev200+gabc", "0.33.0rc1"]
)
def test_outside_the_tested_range(found):
    assert not names.is_tested(found)


@pytest.mark.parametrize("found", ["0.31.0", "0.32.0+cpu", "0.33.5.post1"])
def test_inside_the_tested_range(found):
    assert names.is_tested(found)
