"""Engines with other settings give the reference's answers, too."""

import json
import os
import random
import shutil

import pytest
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from vllm import LLM, SamplingParams

from drawn_text import make_question
from nemotron_vl.verify.reference import Reference
from support.engines import answers
from support.forked import run_forked
from support.loading import make_config
from typefaces import PILLOW_FONT

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def requests(reference) -> list[tuple[str, list]]:
    rng = random.Random(21)
    kinds = ["read", "both", "lines", "count"]
    questions = [make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds]
    return [(q.prompt(), q.images) for q in questions]


@pytest.fixture(scope="module")
def expected(reference, requests) -> list[list[int]]:
    return [reference.answer(*request, GREEDY.max_tokens)[1] for request in requests]


def test_a_compiled_engine(start_llm, tiny, requests, expected):
    llm = start_llm(tiny, dtype="float32", enforce_eager=False)
    assert llm.llm_engine.vllm_config.compilation_config.mode
    assert answers(llm, requests, GREEDY) == expected


def test_a_processor_cache_in_shared_memory(start_llm, tiny, requests, expected):
    """Images pass from process to process through it."""
    llm = start_llm(
        tiny, worker_process=True, dtype="float32", mm_processor_cache_type="shm"
    )
    assert answers(llm, requests, GREEDY) == expected
    llm.reset_prefix_cache()
    assert answers(llm, requests, GREEDY) == expected


def _answer_in_this_process(folder: str, requests: list) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    options = dict(dtype="float32", enforce_eager=True, max_model_len=2048)
    llm = LLM(folder, **options, limit_mm_per_prompt={"image": 3})
    print(json.dumps(answers(llm, requests, GREEDY)))


def test_an_engine_in_the_same_process(tiny, requests, expected, tmp_path):
    """vLLM cannot start its worker there if something has imported numba."""
    output = tmp_path / "output.txt"
    printed = run_forked(_answer_in_this_process, str(tiny), requests, output=output)
    assert json.loads(printed.splitlines()[-1]) == expected


def spoil(model) -> None:
    model.input_conditioner.scale.zero_()
    model.mlp1[0].weight.data.zero_()


def forget(llm) -> None:
    """Empty the caches of what was computed with other weights."""
    llm.reset_prefix_cache()
    llm.llm_engine.reset_encoder_cache()


def test_a_checkpoint_of_several_files_is_loaded_and_reloaded(
    start_llm, tiny, requests, expected, tmp_path
):
    folder = tmp_path / "files"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(tiny / "model.safetensors")
    save_torch_state_dict(tensors, folder, max_shard_size="3MB")
    assert (folder / "model.safetensors.index.json").exists()
    llm = start_llm(folder, dtype="float32")
    assert answers(llm, requests, GREEDY) == expected
    llm.apply_model(spoil)
    forget(llm)
    assert answers(llm, requests, GREEDY) != expected
    llm.collective_rpc("reload_weights")
    forget(llm)
    assert answers(llm, requests, GREEDY) == expected
    block = {name: t for name, t in tensors.items() if ".blocks.1." in name}
    others = {name: t * 1.1 for name, t in tensors.items() if name not in block}
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny, damaged, ignore=shutil.ignore_patterns("*.safetensors"))
    save_torch_state_dict(others, damaged, max_shard_size="3MB")
    with pytest.raises(Exception, match=f"lacks {len(block)} of"):
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(damaged)})
    forget(llm)
    assert answers(llm, requests, GREEDY) == expected


def test_sleep_is_refused_by_vllm_on_a_cpu(tiny):
    with pytest.raises(ValueError, match="Sleep mode is not supported"):
        make_config(tiny, "float32", enable_sleep_mode=True)
