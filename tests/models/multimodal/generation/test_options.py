"""Combinations of vLLM's options: each pair gives the reference's answers.

The combinations are those of `support.option_table`. Prompts are cut inside images.
"""

import pytest
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from support import option_requests
from support.engines import RUNNER_V2
from support.gpu_like import graph_hits
from support.option_requests import ADAPTERS, TOKENS, Ask, World
from support.option_table import (
    EMBEDDINGS,
    GRAPH,
    LANGUAGE_LORA,
    OPTIONS,
    PIPELINE,
    PRODUCER,
    QUANTISED,
    READER,
    TENSOR,
    TOWER_LORA,
    VIDEOS,
    rows,
)
from support.tiny import TILE_TOKENS
from vllm_nemotron_vl.config.nemotron_vl_cpu import has_amx

ROWS = rows(RUNNER_V2)
# vLLM's INT8 products do not take float32 there. Its answers are read, not computed.
BFLOAT16 = has_amx()


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory) -> World:
    return World(tiny, tmp_path_factory.mktemp("world"))


def name_of(row: frozenset[str]) -> str:
    return ", ".join(option for option in OPTIONS if option in row)


def connector(row, store) -> dict:
    role = {READER: "ec_consumer", PRODUCER: "ec_producer"}
    (chosen,) = [role[option] for option in role if option in row]
    return {
        "ec_connector": "ECExampleConnector",
        "ec_role": chosen,
        "ec_connector_extra_config": {"shared_storage_path": str(store)},
    }


def start(start_llm, world, row, store):
    arguments: dict = {}
    for option in OPTIONS:
        if option in row:
            arguments |= OPTIONS[option].arguments
    if row & {READER, PRODUCER}:
        arguments["ec_transfer_config"] = connector(row, store)
    low = QUANTISED in row and BFLOAT16
    return start_llm(
        world.quantised if QUANTISED in row else world.tiny,
        dtype="bfloat16" if low else "float32",
        worker_cls="support.gpu_like.Worker",
        block_size=32,
        max_num_batched_tokens=4 * TILE_TOKENS,
        **arguments,
    )


def asks(world, row) -> list[Ask]:
    found = option_requests.pictures()
    if EMBEDDINGS in row:
        found += option_requests.embeddings(world, QUANTISED in row)
    if VIDEOS in row:
        found += option_requests.videos()
    return found


def adapters_of(row) -> list[str]:
    names = [] if LANGUAGE_LORA not in row else ["language"]
    return names if TOWER_LORA not in row else [*ADAPTERS]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_answers(start_llm, world, row, tmp_path, monkeypatch):
    if row & {TENSOR, PIPELINE}:
        cores = "0|1" if not {TENSOR, PIPELINE} <= row else "0|1|0|1"
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", cores)
    adapters = adapters_of(row)
    llm = start(start_llm, world, row, tmp_path)
    if PRODUCER in row:
        check_published(llm, world, row, tmp_path, adapters)
    else:
        check_answers(llm, world, row, tmp_path, adapters)
    if GRAPH in row:
        assert max(llm.collective_rpc(graph_hits)) > 0


def lora_request(world, name: str | None) -> LoRARequest | None:
    if name is None:
        return None
    assert world.merged[name]
    return LoRARequest(name, ADAPTERS.index(name) + 1, str(world.folder / name))


def check_answers(llm, world, row, store, adapters) -> None:
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS)
    int8 = QUANTISED in row
    questions = asks(world, row)
    if READER in row:
        names = [None, *adapters]
        questions += option_requests.stored(world, store, names, int8)
    # Requests without an adapter alone: see docs/limits.md, CPUs.
    for batch in [[None], adapters]:
        asked = [(ask, adapter) for ask in questions for adapter in batch]
        if not asked:
            continue
        requests = [lora_request(world, name) for _, name in asked]
        outputs = llm.generate(
            [ask.prompt for ask, _ in asked],
            sampling,
            use_tqdm=False,
            lora_request=requests if adapters else None,
        )
        for (ask, adapter), output in zip(asked, outputs, strict=True):
            expected = world.answer(ask, adapter=adapter, int8=int8)
            found = list(output.outputs[0].token_ids)
            assert found == expected[: len(found)], (ask.name, adapter)
            stopped = output.outputs[0].finish_reason == "stop"
            assert stopped or len(found) == TOKENS, (ask.name, adapter)


def check_published(llm, world, row, store, adapters) -> None:
    """An encoder publishes the reference's embeddings of each image and video."""
    bound = 0.1 if BFLOAT16 and QUANTISED in row else 1e-4
    for adapter in [None, *adapters]:
        request = lora_request(world, adapter)
        kind = dict(adapter=adapter, int8=QUANTISED in row)
        for ask in asks(world, row):
            if len(ask.pictures) + len(ask.videos) != 1:
                continue
            (output,) = llm.generate(ask.prompt, use_tqdm=False, lora_request=request)
            (name,) = output.ec_transfer_params
            file = store / name / "encoder_cache.safetensors"
            (found,) = load_file(file).values()
            plain = world.reference()
            if ask.videos:
                pixels = plain.frames_to_pixels(ask.videos[0])
            else:
                pixels = plain.to_pixels(ask.pictures[0])
            expected = world.features(pixels, **kind)
            assert found.shape == expected.shape
            error = (found.float() - expected).norm() / expected.norm()
            assert error < bound, (ask.name, adapter, error)
