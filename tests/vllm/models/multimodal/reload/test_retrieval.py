"""The models that find and rank pages get new weights: all of a checkpoint's, or none.

As with the chat model, see test_files.py.
"""

from types import SimpleNamespace

import pytest
import torch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

from support.reloading import changed, state

BLOCK = "vision_model.vision_model.encoder.layers.1."


@pytest.fixture(scope="module", params=["embed", "rerank"])
def checkpoint(request):
    return request.getfixturevalue(f"{request.param}_checkpoint")


@pytest.fixture
def prefix(checkpoint) -> str:
    return "model." if checkpoint.name == "rerank" else ""


@pytest.mark.parametrize("runner", [RunnerV1, RunnerV2])
def test_a_reload_from_files_is_all_or_nothing(
    start, checkpoint, prefix, others, write, runner
):
    model, reload = start(checkpoint, runner)
    before = state(model)
    block = {name: t for name, t in others.items() if BLOCK not in name}
    shape = others | {f"{prefix}mlp1.0.bias": torch.zeros(7)}
    for path, cause in (
        (write("block", block), rf"lacks 16 of \d+ tensors: {prefix}{BLOCK}"),
        (write("shape", shape), r"mlp1\.0\.bias' .* shape \(7,\)"),
        (write("unknown", others | {"x.y": torch.zeros(1)}), "'x.y' .* not part of"),
    ):
        with pytest.raises(ValueError, match=cause):
            reload(weights_path=path)
        assert changed(before, state(model)) == set(), path
    expected, _ = start(write("again", others))
    reload(weights_path=write("whole", others))
    assert changed(state(expected), state(model)) == set()
    reload(weights_path=str(checkpoint))
    assert changed(before, state(model)) == set()


def test_transformers_own_names_of_siglip_are_read(start, checkpoint, others, write):
    """Release 5 saves them without the inner part's name."""
    flat = {
        name.replace("vision_model.vision_model.", "vision_model."): tensor
        for name, tensor in others.items()
    }
    expected, _ = start(write("again", others))
    model, reload = start(write("flat", flat))
    assert changed(state(expected), state(model)) == set()
    reload()
    assert changed(state(expected), state(model)) == set()


def test_tensors_are_named_as_in_the_files(start, checkpoint, prefix, tensors, write):
    known = f"{prefix}language_model.layers.0.self_attn.k_scale"
    for name in (known, f"{prefix}x.weight"):
        path = write(name, tensors | {name: torch.zeros(1)})
        with pytest.raises(ValueError, match=f"Tensor '{name}' of the checkpoint"):
            start(path)


def test_without_images_the_encoder_may_be_missing(start, prefix, tensors, write):
    language = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith((f"{prefix}vision_model.", f"{prefix}mlp1."))
    }
    path = write("language", language)
    with pytest.raises(ValueError, match="lacks"):
        start(path)
    model, reload = start(path, limit_mm_per_prompt={"image": 0})
    before = state(model)
    reload()
    assert changed(before, state(model)) == set()


def test_what_nothing_uses_is_left_out(start, checkpoint, prefix, tensors, write):
    """Heads of the parts' own, of any shape, and blocks that config.json leaves out."""
    block = {
        name.replace(BLOCK, BLOCK.replace("1", "2")): tensor + 1
        for name, tensor in tensors.items()
        if BLOCK in name
    }
    assert len(block) == 16
    heads = ("vision_model.head.probe", "vision_model.vision_model.head.probe")
    heads += ("language_model.score.weight", "language_model.lm_head.weight")
    unused = block | {f"{prefix}{name}": torch.ones(3, 5) for name in heads}
    expected, _ = start(checkpoint)
    model, _ = start(write("unused", tensors | unused))
    assert changed(state(expected), state(model)) == set()


@pytest.mark.parametrize("trainer", [False, True])
def test_a_kernel_with_an_address_of_scales_takes_no_new_weights(
    start, checkpoint, others, write, trainer
):
    model, reload = start(checkpoint)
    layer = model.language_model.model.layers[0].mlp.down_proj
    layer.scheme = SimpleNamespace(kernel=SimpleNamespace(dnnl_handler=None))
    layer.weight = None
    before = state(model)
    given = {"weights_path": write("whole", others)}
    if trainer:
        given = {"weights_iterator": iter(others.items())}
    with pytest.raises(ValueError, match="takes no new weights"):
        reload(**given)
    assert changed(before, state(model)) == set()


def test_a_trainer_may_send_a_part(start, checkpoint, prefix, others):
    model, _ = start(checkpoint)
    model.tile_reuse = SimpleNamespace(clear=lambda: cleared.append(True))
    cleared: list[bool] = []
    before = state(model)
    name = f"{prefix}mlp1.3.bias"
    model.load_weights([(name, others[name])])
    assert changed(before, state(model)) == {"mlp1.3.bias"}
    assert torch.equal(model.mlp1[3].bias, others[name].float())
    assert cleared  # its tiles were of the weights before
