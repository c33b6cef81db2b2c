"""All engines of `nemotron-vl verify` on a GPU; `tools/gpu_day.sh` runs it there."""

import pytest
import torch

from nemotron_vl.checkpoints.random_checkpoint import make_checkpoint
from nemotron_vl.verify.verification import Request, verify

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a GPU: compiled kernels, CUDA graphs of the encoder",
)

# What kernels depend on, as in the published model: tiles, and heads of 80 in the tower
# and of 128 in the language model. Widths are small.
KERNELS = dict(
    tile_size=512,
    cpe_max_size=2048,
    vision_options=dict(hidden_size=320, num_attention_heads=4, intermediate_size=1280),
    hidden_size=512,
    heads=4,
    kv_heads=1,
)


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_vllm_and_the_reference_agree(tiny, tmp_path, weights):
    folder = tiny
    if weights == "random":
        folder = tmp_path / "checkpoint"
        make_checkpoint(folder, **KERNELS)
    results = verify(Request(folder, parts=["compare"], dtypes=["bfloat16"]), print)
    assert results["ok"], results["wrong_stages"]
    engines = {row["engine"].partition(",")[0] for row in results["rows"]}
    assert {"eager", "compiled", "encoder-graphs"} <= engines
    stages = {row["stage"] for row in results["rows"]}
    assert "normalised pixels, no fused kernel" in stages
