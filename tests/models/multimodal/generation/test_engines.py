"""Engines with other settings give the reference's answers, too."""

import json
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file
from vllm import SamplingParams

from drawn_text import PILLOW_FONT, make_question
from reference.nemotron_vl import Reference
from support.loading import make_config

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def requests(reference) -> list[tuple[str, list]]:
    rng = random.Random(21)
    kinds = ["read", "both", "lines", "count"]
    questions = [make_question(rng, PILLOW_FONT, reference, kind) for kind in kinds]
    return [(q.prompt(), [d.picture for d in q.drawings]) for q in questions]


@pytest.fixture(scope="module")
def expected(reference, requests) -> list[list[int]]:
    return [reference.answer(*request, GREEDY.max_tokens)[1] for request in requests]


def answers(llm, requests) -> list[list[int]]:
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": pictures}}
        for text, pictures in requests
    ]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_a_compiled_engine(start_llm, tiny, requests, expected):
    llm = start_llm(tiny, dtype="float32", enforce_eager=False)
    assert llm.llm_engine.vllm_config.compilation_config.mode
    assert answers(llm, requests) == expected


def test_a_processor_cache_in_shared_memory(start_llm, tiny, requests, expected):
    """Images pass from process to process through it."""
    llm = start_llm(
        tiny, worker_process=True, dtype="float32", mm_processor_cache_type="shm"
    )
    assert answers(llm, requests) == expected
    llm.reset_prefix_cache()
    assert answers(llm, requests) == expected


def test_a_checkpoint_of_several_files(start_llm, tiny, requests, expected, tmp_path):
    folder = tmp_path / "files"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(tiny / "model.safetensors")
    names = sorted(tensors)
    place = {}
    for number in range(3):
        part = names[number::3]  # layers are cut in their middle
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        place |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    llm = start_llm(folder, dtype="float32")
    assert answers(llm, requests) == expected


def test_sleep_is_refused_by_vllm_on_a_cpu(tiny):
    with pytest.raises(ValueError, match="Sleep mode is not supported"):
        make_config(tiny, "float32", enable_sleep_mode=True)
