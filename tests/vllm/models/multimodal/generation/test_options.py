"""Options together, on engines: all answers are the reference's.

`support.options` has the table of options. Each engine here has one of its `rows`.
``model_runner_v2`` runs those of Model Runner V2.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from support import gpu_like
from support.engines import RUNNER_V2
from support.option_requests import (
    TOKENS,
    Ask,
    Expected,
    alike,
    embeddings,
    images,
    stored,
    stored_video,
    videos,
)
from support.options import CACHE_OFF, engine_options, four_ranks, rows
from vllm_nemotron_vl.config.nemotron_vl_cpu import has_amx

# Largest errors of the log-probabilities of the first token, and of embeddings. The
# kernel of INT8 rounds activations, too: 0.07 and 0.008 with AVX-512.
LIMITS = {"float32": (1e-3, 1e-4), "int8": (0.2, 0.02), "bfloat16": (0.5, 0.05)}
STEP = 96  # tokens, fewer than the largest image has
ROWS = [
    pytest.param(
        row,
        id="-".join(row),
        marks=pytest.mark.releases if four_ranks(row) else (),
    )
    for row in rows()
    if ("v2" in row) == RUNNER_V2
]
READERS, PRODUCERS = {"reader", "both"}, {"producer", "both"}


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory) -> Expected:
    return Expected(tiny, tmp_path_factory.mktemp("options"))


def start(start_llm, expected: Expected, row: Sequence[str], store: Path) -> LLM:
    options = {
        "dtype": "float32",
        "worker_cls": "support.gpu_like.Worker",
        "max_num_batched_tokens": STEP,
        "block_size": 32,
        **engine_options(row, store),
    }
    if "graphs" in row and "cache" not in row:  # the cache needs images in no graph
        own = options["compilation_config"]
        sizes = {"encoder_cudagraph_token_budgets": []}  # the default
        options["compilation_config"] = own | sizes
    checkpoint = expected.tiny
    if "int8" in row:
        checkpoint = expected.int8_checkpoint
        if has_amx():  # the configuration refuses float32 there
            options["dtype"] = "bfloat16"
    return start_llm(checkpoint, **options)


def requests(expected: Expected, row: Sequence[str], store: Path) -> list[Ask]:
    kind = {"int8": "int8" in row}
    asks = images()
    if "embeds" in row:
        asks += embeddings(expected, **kind)
    if "video" in row:
        asks += videos()
    if READERS & {*row}:
        adapters: list[str | None] = [None]
        if "tower" in row:  # then names begin with the adapter's
            adapters += ["language", "tower", "all"]
        asks += stored(expected, store, adapters=adapters, **kind)
        if "video" in row:
            asks += stored_video(expected, store, **kind)
    return asks


def adapters_of(row: Sequence[str], count: int) -> list[list[str | None]]:
    """For each batch the adapter of each request.

    None is in a batch with adapters: on CPUs, vLLM's kernels would apply one of them
    to it.
    """
    batches: list[list[str | None]] = [[None] * count]
    if "language" in row:
        batches.append(["language"] * count)
    if "tower" in row:
        batches.append([("tower", "all")[number % 2] for number in range(count)])
    return batches


def check_published(output, features: Sequence[torch.Tensor], store, limit) -> None:
    """The store has the embeddings, under the names that the answer tells."""
    names = output.ec_transfer_params or {}
    files = [store / name / "encoder_cache.safetensors" for name in names]
    published = [load_file(file)["ec_cache"].float() for file in files]
    for item in features:
        errors = [
            float((item - found).norm() / item.norm())
            for found in published
            if found.shape == item.shape
        ]
        assert errors and min(errors) < limit, (names, errors)


@pytest.mark.parametrize("row", ROWS)
def test_answers_are_the_references(
    start_llm, expected, row, tmp_path_factory, monkeypatch
):
    ranks = 2 ** len({"tp", "dp", "pp"} & {*row})
    if ranks > 1:
        cores = "|".join(str(rank % 2) for rank in range(ranks))
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", cores)
    store = tmp_path_factory.mktemp("store")
    asks = requests(expected, row, store)
    llm = start(start_llm, expected, row, store)
    if READERS & {*row} and "tower" in row:  # vLLM takes embeddings in all readers
        with pytest.raises(VLLMValidationError, match="--enable-tower-connector-lora"):
            llm.generate(embeddings(expected)[0].prompt, use_tqdm=False)
    for adapters in adapters_of(row, len(asks)):
        check_answers(llm, expected, row, store, asks, adapters)
    for together, adapters in llm.collective_rpc(gpu_like.most_together):
        assert together > 1
        assert adapters > 1 or "tower" not in row
    if "graphs" in row:
        assert max(llm.collective_rpc(gpu_like.graph_hits)) > 0
    if "cache" in row and not any(off <= {*row} for off in CACHE_OFF):
        for ask in alike():  # one at a time
            before = llm.apply_model(gpu_like.cached)[0]
            check_answers(llm, expected, row, store, [ask], [None])
            assert llm.apply_model(gpu_like.cached)[0] - before == 8


def check_answers(llm, expected, row, store, asks, adapters) -> None:
    """Ask all in one batch, each with its adapter.

    All are queued before the first step, so steps do not depend on the machine's speed.
    """
    sampling = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=5
    )
    llm.sleep(level=0)
    llm.enqueue(
        [ask.prompt for ask in asks],
        sampling,
        use_tqdm=False,
        lora_request=[name and expected.adapter(name) for name in adapters],
    )
    llm.wake_up(tags=["scheduling"])
    outputs = llm.wait_for_completion(use_tqdm=False)
    int8 = "int8" in row
    rough = llm.llm_engine.vllm_config.model_config.dtype != torch.float32
    kind = "bfloat16" if rough else "int8" if int8 else "float32"
    limit, embedding_limit = LIMITS[kind]
    for ask, adapter, output in zip(asks, adapters, outputs, strict=True):
        if PRODUCERS & {*row} and not ask.uuids:
            features = expected.features(ask, adapter, int8)
            check_published(output, features, store, embedding_limit)
        (answered,) = output.outputs
        found = [*answered.token_ids]
        if "producer" in row:
            assert found == []
            continue
        answer, first = expected.answer(ask, adapter, int8)
        if rough:
            found, answer = map(expected.up_to_the_end, (found, answer))
        assert found == answer, (ask.name, adapter)
        likely = {token: value.logprob for token, value in answered.logprobs[0].items()}
        error = max(abs(value - first[token]) for token, value in likely.items())
        assert error < limit, (ask.name, adapter, error)
