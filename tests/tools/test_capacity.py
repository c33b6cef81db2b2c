"""The model of capacity on paper: work of a page, engines, and what saturates them."""

import dataclasses

import pytest
import timm.layers
import torch
from torch.utils.flop_counter import FlopCounterMode

from capacity.data import read_data
from capacity.engine import Assumptions, Engine, make_engines
from capacity.planning import saturation
from capacity.work import work_of_page
from nemotron_vl.checkpoints.files import read_json
from nemotron_vl.checkpoints.inspection import inspect
from nemotron_vl.verify.reference import Reference
from support.tiny import TILE, TILE_TOKENS
from vllm_nemotron_vl.transformers_utils.configs.nemotron_vl_schema import read_config

FRONT_ENDS, GPUS = read_data()
FRONT_END = next(iter(FRONT_ENDS.values()))
ASSUMED = Assumptions()
TOKENS = 13 * TILE_TOKENS + 2 + ASSUMED.question_tokens  # of a full page


def count(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_operations_are_those_of_the_reference(checkpoint, monkeypatch):
    """PyTorch counts the products that the reference computes."""
    timm.layers.set_fused_attn(False)  # as products, which the counter knows
    try:
        reference = Reference.load(checkpoint)
    finally:
        timm.layers.set_fused_attn(True)
    reference.language_model.set_attn_implementation("eager")
    tiles, question, answer = 5, 7, 4
    config = read_config(read_json(str(checkpoint), "config.json"))
    work = work_of_page(config, tiles, question, answer)

    pixels = torch.zeros(tiles, 3, config.force_image_size, config.force_image_size)
    features = reference.tower(pixels)
    assert work.tower == count(lambda: reference.tower(pixels))
    assert work.connector == count(lambda: reference.connect(features))
    embeddings = reference.connect(features)
    assert work.prompt_tokens == embeddings[..., 0].numel() + 2 + question
    assert work.embedding_bytes == embeddings.to(torch.bfloat16).nbytes
    assert work.tile_bytes == pixels.to(torch.uint8).nbytes
    assert work.in_tree_tile_bytes == pixels.nbytes

    model = reference.language_model
    prompt = torch.zeros(1, work.prompt_tokens, dtype=torch.long)
    # Some releases of transformers compute the angles of the positions as a product.
    angles = count(lambda: model.model.rotary_emb(torch.zeros(1), prompt))
    counted = count(lambda: model(prompt, logits_to_keep=1)) - angles
    # The reference computes the whole square of the attention, and masks half of it.
    assert work.prefill + 2 * work.prefill_attention == counted
    past = torch.zeros(1, work.prompt_tokens + answer // 2 - 1, dtype=torch.long)
    cache = model(past, use_cache=True).past_key_values
    token = torch.zeros(1, 1, dtype=torch.long)
    counted = count(lambda: model(token, past_key_values=cache))
    assert work.decode == counted - angles // work.prompt_tokens


@pytest.fixture
def engine() -> Engine:
    return Engine(
        encode=0.05,
        prefill=0.15,
        read=0.01,
        read_context=0.0002,
        decode=0.00001,
        answer_tokens=100,
        most_sequences=50,
    )


def test_an_engine_saturates_when_its_memory_is_full(engine):
    most = engine.most_pages
    # A second has time for all prompts and for all steps with a full memory.
    steps = most * engine.answer_tokens / engine.most_sequences
    assert most * 0.2 + steps * (0.01 + 50 * 0.0002) == pytest.approx(1)
    small = dataclasses.replace(engine, most_sequences=2)
    assert small.most_pages < most / 2
    assert dataclasses.replace(engine, answer_tokens=0).most_pages == 1 / 0.2


@pytest.fixture(scope="module")
def report(tiny):
    return inspect(str(tiny), dtype="bfloat16")


def test_bytes_of_a_page_saturate_the_network(report):
    found = saturation(report, GPUS["H100"], FRONT_END, ASSUMED, tiles=3)
    page, most = found["page"], found["most_pages"]
    link = ASSUMED.network_gbit * 1e9 / 8
    assert page["request_bytes"] == pytest.approx(FRONT_END.request_bytes * 4 / 3)
    width = page["embedding_bytes"] / (3 * TILE_TOKENS * 2)
    assert (
        width == read_json(report["model"], "config.json")["llm_config"]["hidden_size"]
    )
    sizes = {
        "link, requests": page["request_bytes"],
        "link, uint8 tiles": 3 * 3 * TILE * TILE,
        "link, float32 tiles": 4 * 3 * 3 * TILE * TILE,
        "link, embeddings": page["embedding_bytes"],
    }
    for name, size in sizes.items():
        assert most[name] == pytest.approx(link / size)
    assert most["API server, ours"] == 1000 / FRONT_END.ours_ms
    assert most["API server, in-tree"] == 1000 / FRONT_END.in_tree_ms


def test_assumptions_change_what_they_should(report):
    def rate(gpu="H100", tp=1, **changes):
        assumed = dataclasses.replace(ASSUMED, **changes)
        asked = report if tp == 1 else inspect(report["model"], tp=tp, dtype="bfloat16")
        return saturation(asked, GPUS[gpu], FRONT_END, assumed)["most_pages"]

    encoder = "encoder of its own"
    usual = rate()
    assert rate(compute_share=0.8)[encoder] == pytest.approx(2 * usual[encoder])
    assert rate(tp=2)[encoder] == pytest.approx(2 * usual[encoder])
    assert rate(fp8=True)[encoder] == pytest.approx(usual[encoder])
    assert rate(fp8=True)["engine"] > usual["engine"]
    assert rate(bandwidth_share=0.35)["engine"] < usual["engine"]
    assert rate(answer_tokens=512)["engine"] < usual["engine"]
    assert rate("GB10")["engine"] < usual["engine"]


@pytest.mark.parametrize(
    ("gpu", "changes", "message"),
    [
        (
            "H100",
            {"gpu_memory_utilization": 0.02},
            "79.11 GiB of the H100 SXM do not hold",
        ),
        (
            "H100",
            {"answer_tokens": 10**6},
            f"answer take {10**6 + TOKENS:,} tokens",
        ),
    ],
)
def test_what_does_not_fit_is_refused(report, gpu, changes, message):
    assumed = dataclasses.replace(ASSUMED, **changes)
    with pytest.raises(ValueError, match=message):
        saturation(report, GPUS[gpu], FRONT_END, assumed)


def test_float32_is_refused(tiny):
    report = inspect(str(tiny), dtype="float32")
    with pytest.raises(ValueError, match="add --dtype bfloat16"):
        saturation(report, GPUS["H100"], FRONT_END, ASSUMED)


def test_decoding_reads_the_weights_but_the_table_of_embeddings(report):
    config = read_config(read_json(report["model"], "config.json"))
    llm, language = config.llm_config, report["parts"]["language model"]
    assert not llm.tie_word_embeddings
    work = work_of_page(config, 13, 64, answer_tokens=9)
    gpu = dataclasses.replace(GPUS["H100"], bandwidth=1.0)
    engine = make_engines(work, report, gpu, ASSUMED).whole
    table = llm.vocab_size * llm.hidden_size * 2
    read = (language["rank_bytes"] - table) / (ASSUMED.bandwidth_share * 1e12)
    assert engine.read == pytest.approx(read)
    # Bytes on a rank may be those of a quantised checkpoint.
    parts = report["parts"] | {"language model": language | {"rank_bytes": 3 * 10**10}}
    large = make_engines(work, report | {"parts": parts}, GPUS["H100"], ASSUMED).whole
    assert large.read > engine.read


def test_weights_leave_less_room_for_requests(report):
    parts = report["parts"]["language model"] | {"rank_bytes": 69 * 10**9}
    large = report | {"parts": report["parts"] | {"language model": parts}}
    config = read_config(read_json(report["model"], "config.json"))
    work = work_of_page(config, 13, 64, answer_tokens=256)
    gpu = dataclasses.replace(GPUS["H100"], max_num_seqs=10**9)
    found = make_engines(work, large, gpu, ASSUMED)
    others = sum(part["rank_bytes"] for part in large["parts"].values())
    request = (work.prompt_tokens + 256) * report["kv_bytes_per_token"]
    room = 0.92 * 79.11 * 2**30 - 2e9
    assert found.whole.most_sequences == int((room - others) // request)
    assert found.language.most_sequences == int((room - 69e9) // request)


def test_every_figure_has_a_source():
    assert all(gpu.source for gpu in GPUS.values())
    for entry in FRONT_ENDS.values():
        assert entry.measured and entry.ours_ms < entry.in_tree_ms
