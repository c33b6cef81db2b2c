"""FP8 checkpoints of the models that find and rank pages: which layers are quantised.

The published ones are not known; these are written as ModelOpt writes them.
"""

import pytest
import torch
from safetensors.torch import load_file
from vllm.model_executor.layers.linear import LinearBase

from support.loading import load, make_config
from support.quantised import fp8_config
from support.quantised_layers import write_fp8


def method(module) -> str:
    return type(module.quant_method).__name__


@pytest.mark.parametrize("kind", ["embed", "rerank"])
@pytest.mark.parametrize(
    "ignore",
    [
        ["vision_model*", "mlp1*", "score"],
        ["*vision_model*", "*mlp1*", "*score*"],
        ["model.vision_model*", "model.mlp1*", "score"],
    ],
    ids=["parts", "wildcards", "with the part's prefix"],
)
def test_modelopts_fp8(request, with_quantisation, kind, ignore):
    """Weights and scales are found by the checkpoint's names; the connector is never
    quantised."""
    prefix = "model." if kind == "rerank" else ""
    if ignore[0].startswith("model.") and not prefix:
        pytest.skip("the embedding model has no such prefix")
    source = request.getfixturevalue(f"{kind}_checkpoint")
    folder = with_quantisation(source, fp8_config(ignore))
    write_fp8(folder)
    written = load_file(folder / "model.safetensors")

    model = load(make_config(folder, "bfloat16"), pack_weights=False)
    for name, module in model.named_modules():
        if isinstance(module, LinearBase):
            quantised = ".layers." in name and name.startswith("language_model.")
            expected = (
                "ModelOptLinearMethod" if quantised else "UnquantizedLinearMethod"
            )
            assert method(module) == expected, name
    layer = model.language_model.model.layers[1].mlp.down_proj
    stored = f"{prefix}language_model.layers.1.mlp.down_proj.weight"
    assert torch.equal(layer.weight.float(), written[stored].float())
    assert torch.equal(layer.weight_scale.flatten(), written[f"{stored}_scale"][None])
