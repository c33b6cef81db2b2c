"""LoRA adapters on the language model, the tower and the connector.

``train_adapters.py`` trains them with PEFT under the checkpoint's layer names.
Each answer must equal that of the reference with the adapter merged into its
weights.
"""

import pickle
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from drawn_text import make_question
from nemotron_vl.checkpoints.inspection import inspect
from nemotron_vl.server import serving
from nemotron_vl.verify.reference import Reference
from support import engines
from support.bad_adapters import BAD, changed, renamed
from support.chat import (
    EXACT,
    ONE_WORKER,
    SERVER_OPTIONS,
    chat_request,
    content,
    reference_text,
)
from support.clips import VIDEO, encoded, numbers
from support.engines import RUNNER_V2, answers, tower_calls
from support.hostile import Code
from support.servers import forked_servers
from support.tiny import MLP_WIDTH
from support.train_adapters import LANGUAGE, TARGETS, train
from typefaces import PILLOW_FONT

TOKENS = 12
OPTIONS = dict(max_lora_rank=8, max_loras=2)
SAMPLING = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> dict[str, tuple[Path, Reference]]:
    """For each part: an adapter's folder, and the reference with it merged."""
    folder = tmp_path_factory.mktemp("adapters")
    return {part: (folder / part, train(tiny, part, folder / part)) for part in TARGETS}


@pytest.fixture(scope="module")
def plain(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def questions(plain):
    rng = random.Random(3)
    kinds = ["read", "read", "both"]
    return [make_question(rng, PILLOW_FONT, plain, kind) for kind in kinds]


def answer_of(reference: Reference, question) -> list[int]:
    return reference.answer(question.prompt(), question.images, TOKENS)[1]


def generate(llm, question, requests) -> list[list[int]]:
    """Answers to one question in one batch, each with its own LoRA request."""
    asked = [(question.prompt(), question.images)] * len(requests)
    return answers(llm, asked, SAMPLING, lora_request=requests)


ALL_PARTS = dict(
    dtype="float32",
    enable_lora=True,
    enable_tower_connector_lora=True,
    block_size=32,  # a prompt fills several, which vLLM's prefix cache keeps
    **OPTIONS,
)


@pytest.fixture(scope="module")
def llm(make_llm, tiny):
    return make_llm(tiny, **ALL_PARTS)


def check_each_adapter(llm, plain, trained, questions) -> None:
    """Each answers as the reference with the adapter merged into its weights."""
    for question in questions:
        expected = answer_of(plain, question)
        assert generate(llm, question, [None]) == [expected]
        for number, (part, (folder, reference)) in enumerate(trained.items(), 1):
            merged = answer_of(reference, question)
            assert merged != expected, part
            request = LoRARequest(part, number, str(folder))
            assert generate(llm, question, [request]) == [merged], part


def test_each_adapter_answers_as_merged(llm, plain, trained, questions):
    check_each_adapter(llm, plain, trained, questions)


@pytest.mark.releases
@pytest.mark.skipif(
    not RUNNER_V2, reason="On CPUs, vLLM's V1 runner has no pipelines with adapters"
)
def test_each_adapter_on_two_pipeline_ranks(
    start_llm, tiny, plain, trained, questions, monkeypatch
):
    """Only the first rank has the tower, and applies the adapters' layers of it."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    # In eager mode vLLM's CPU runner has no pipelines.
    llm = start_llm(tiny, **ALL_PARTS, pipeline_parallel_size=2, enforce_eager=False)
    check_each_adapter(llm, plain, trained, questions)


def test_an_adapter_of_the_language_model_answers_about_a_video(
    start_llm, tiny, plain, trained
):
    llm = start_llm(
        tiny, dtype="float32", hf_overrides=VIDEO, enable_lora=True, **OPTIONS
    )
    folder, merged = trained["language"]
    frames, text = numbers("640-27", "12"), "<img></img>\nRead the text."
    prompt = {"prompt": text, "multi_modal_data": {"video": encoded(frames)}}
    found = []
    for lora, reference in (
        (LoRARequest("language", 1, str(folder)), merged),
        (None, plain),
    ):
        (output,) = llm.generate([prompt], SAMPLING, lora_request=lora, use_tqdm=False)
        found.append(list(output.outputs[0].token_ids))
        assert found[-1] == reference.answer(text, [], TOKENS, [frames])[1]
    assert found[0] != found[1]


def test_vllms_caches_know_the_adapter(llm, plain, trained, questions):
    """Of pixels, of prompts and of embeddings: one image in turn with several."""
    numbers = {part: number for number, part in enumerate(trained, 1)}
    question = questions[2]
    expected = {
        part: answer_of(model, question) for part, (_, model) in trained.items()
    }
    expected[None] = answer_of(plain, question)
    assert len({*map(tuple, expected.values())}) == len(expected)

    def ask(part: str | None) -> tuple[list[int], int]:
        request = part and LoRARequest(part, numbers[part], str(trained[part][0]))
        asked = [(question.prompt(), question.images)]
        (output,) = engines.generate(llm, asked, SAMPLING, lora_request=request or None)
        return list(output.outputs[0].token_ids), output.num_cached_tokens

    llm.reset_prefix_cache()
    llm.llm_engine.reset_encoder_cache()
    calls = tower_calls(llm, start=True)
    order = [None, "tower", "language", "connector", "tower", None, "language", None]
    seen: set[str | None] = set()
    for part in order:
        tokens, cached = ask(part)
        assert tokens == expected[part], part
        assert bool(cached) == (part in seen), part
        seen.add(part)
    assert tower_calls(llm) == calls + len(seen)
    llm.reset_prefix_cache()  # the embeddings are still there
    for part in reversed(order):
        assert ask(part)[0] == expected[part], part
    assert tower_calls(llm) == calls + len(seen)


def test_another_adapter_may_take_a_name_after_a_reset(llm, trained, questions):
    """vLLM's cache of embeddings knows an adapter by its name alone."""
    for number, part in enumerate(("tower", "connector"), len(trained) + 2):
        folder, reference = trained[part]
        request = LoRARequest("same", number, str(folder))
        expected = answer_of(reference, questions[0])
        assert generate(llm, questions[0], [request]) == [expected], part
        llm.llm_engine.reset_encoder_cache()


def test_an_adapter_of_llama_alone_applies_to_the_language_model(
    llm, tiny, trained, questions, tmp_path
):
    """Its layer names have no ``language_model.``."""
    folder, reference = trained["language"]
    bare = changed(folder, tmp_path / "bare", renamed(".language_model.", "."))
    request = LoRARequest("bare", len(trained) + 1, str(bare))
    expected = answer_of(reference, questions[0])
    assert generate(llm, questions[0], [request]) == [expected]
    report = inspect(str(tiny), adapters=[str(bare)])
    assert not report["problems"]
    assert not report["adapters"][0]["needs_tower_connector_lora"]


@pytest.mark.parametrize("parts", [("language", "tower"), ("connector", "all")])
def test_two_adapters_in_one_batch(llm, trained, questions, parts):
    """The batch has no request without an adapter. On CPUs, vLLM's LoRA kernels
    would apply the last adapter to it, because they read its index, -1, as the
    last one."""
    numbers = {part: number for number, part in enumerate(trained, 1)}
    requests = [LoRARequest(p, numbers[p], str(trained[p][0])) for p in parts]
    for question in questions:
        expected = [answer_of(trained[part][1], question) for part in parts]
        assert generate(llm, question, requests) == expected


def test_tower_and_connector_adapters_need_their_option(
    start_llm, tiny, trained, questions
):
    llm = start_llm(tiny, dtype="float32", enable_lora=True, **OPTIONS)
    folder, reference = trained["language"]
    language = LoRARequest("language", 1, str(folder))
    expected = [answer_of(reference, questions[0])]
    assert generate(llm, questions[0], [language]) == expected
    for number, part in enumerate(("tower", "connector", "all"), 2):
        request = LoRARequest(part, number, str(trained[part][0]))
        with pytest.raises(Exception, match="--enable-tower-connector-lora") as refusal:
            llm.llm_engine.add_lora(request)
        layer = "mlp1.1" if part == "connector" else "radio_model.model.blocks.0.attn"
        assert layer in str(refusal.value)
    assert generate(llm, questions[0], [language]) == expected


# A server

LORA = ["--enable-lora", "--enable-tower-connector-lora"]
LORA += ["--max-lora-rank=8", "--max-loras=2"]


@pytest.fixture(scope="module")
def client(tiny, trained, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    adapters = [f"{part}={trained[part][0]}" for part in ("language", "tower")]
    options = [*SERVER_OPTIONS, ONE_WORKER, EXACT, *LORA, "--lora-modules", *adapters]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        with forked_servers(), serving(tiny, *options, log=log) as url:
            assert ("Using V2 Model Runner" in log.read_text()) == RUNNER_V2
            yield httpx.Client(base_url=f"{url}/v1", timeout=60)


def ask(client, model: str, question) -> httpx.Response:
    request = chat_request(question, tokens=TOKENS, model=model)
    return client.post("/chat/completions", json=request)


def reply(client, model: str, question) -> str:
    return content(ask(client, model, question))


def text_of(reference: Reference, question) -> str:
    return reference_text(reference, question, tokens=TOKENS)


def test_served_statically_and_in_one_batch(client, trained, questions):
    served = {model["id"] for model in client.get("/models").json()["data"]}
    assert served == {"tiny", "language", "tower"}
    jobs = [(m, q) for q in questions for m in ("language", "tower")] * 2
    with ThreadPoolExecutor(len(jobs)) as threads:
        found = list(threads.map(lambda job: reply(client, *job), jobs))
    assert found == [text_of(trained[m][1], q) for m, q in jobs]


def load(client, name: str, folder: Path) -> httpx.Response:
    return client.post(
        "/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)}
    )


def test_loaded_and_unloaded_while_serving(client, plain, trained, questions):
    for part in ("connector", "all"):
        folder, reference = trained[part]
        assert ask(client, part, questions[0]).status_code == 404
        assert load(client, part, folder).status_code == 200
        for question in questions:
            assert reply(client, part, question) == text_of(reference, question)
        unloading = client.post("/unload_lora_adapter", json={"lora_name": part})
        assert unloading.status_code == 200
        gone = ask(client, part, questions[0])
        assert gone.status_code == 404
        assert part in gone.json()["error"]["message"]
    assert reply(client, "tiny", questions[0]) == text_of(plain, questions[0])


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused(client, trained, questions, tmp_path, name):
    source, changes, causes = BAD[name]
    folder = changed(trained[source][0], tmp_path / "adapter", **changes)
    refusal = load(client, "bad", folder)
    assert refusal.status_code == 500  # vLLM's status for all refusals of a worker
    for cause in causes:
        assert cause in refusal.json()["error"]["message"]
    for part in ("language", "tower"):
        expected = text_of(trained[part][1], questions[0])
        assert reply(client, part, questions[0]) == expected


def test_code_in_an_adapter_is_not_run(client, trained, questions, tmp_path):
    folder = changed(trained["language"][0], tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    marker = tmp_path / "was_run"
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Code(marker)))
    assert load(client, "bad", folder).status_code == 500
    assert not marker.exists()
    expected = text_of(trained["language"][1], questions[0])
    assert reply(client, "language", questions[0]) == expected


def test_inspect_finds_what_is_wrong_with_an_adapter(tiny, trained, tmp_path):
    for part in TARGETS:
        report = inspect(str(tiny), adapters=[str(trained[part][0])])
        assert not report["problems"]
        (found,) = report["adapters"]
        assert found["rank"] == 4
        needs = part not in ("language", "embeddings")
        assert found["needs_tower_connector_lora"] == needs
        weights = load_file(trained[part][0] / "adapter_model.safetensors").values()
        assert found["parameters"] == sum(weight.numel() for weight in weights)
    for name, problem in {
        "deeper": "layers.99.mlp.down_proj",
        "wider": rf"down_proj\.lora_A\.weight has the shape \(4, {2 * MLP_WIDTH}\).* "
        rf"\(4, {MLP_WIDTH}\)",
    }.items():
        source, changes, _ = BAD[name]
        folder = changed(trained[source][0], tmp_path / name, **changes)
        (found, *_) = inspect(str(tiny), adapters=[str(folder)])["problems"]
        assert re.search(problem, found), found
    rank = changed(trained["language"][0], tmp_path / "rank", r=2)
    assert "rank 2" in inspect(str(tiny), adapters=[str(rank)])["problems"][0]


def test_adapters_use_the_names_of_the_checkpoint(trained):
    tensors = load_file(trained["all"][0] / "adapter_model.safetensors")
    for layer in (
        "vision_model.radio_model.model.blocks.0.attn.qkv",
        "mlp1.1",
        f"language_model.model.layers.0.self_attn.{LANGUAGE[0]}",
    ):
        assert torch.count_nonzero(tensors[f"base_model.model.{layer}.lora_B.weight"])
