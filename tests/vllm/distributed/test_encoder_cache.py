"""Encoders of their own: one engine encodes images, and others read them.

They exchange embeddings through vLLM's EC connector (encoder cache), here in files.
"""

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.multimodal.media.image import ImageMediaIO
from vllm.v1.engine.exceptions import EngineDeadError

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.server import serving
from nemotron_vl.verify.reference import Reference
from support.chat import (
    EXACT,
    ONE_WORKER,
    SERVER_OPTIONS,
    content,
    png_part,
    saved,
    text_part,
)
from support.engines import count_parameters
from support.servers import forked_servers
from vllm_nemotron_vl.multimodal.nemotron_vl_embeddings import NUM_TILES

QUESTION = "Read the text."
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
NO_TOWER = {"limit_mm_per_prompt": {"image": 0}}
QUESTIONS = {
    "one": ["640-27"],
    "two": ["640-27", "118-05"],
    "the same twice": ["33.7", "33.7"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The folder in which embeddings are exchanged."""
    return tmp_path_factory.mktemp("store")


def connector(role: str, store: Path) -> dict:
    return {
        "ec_connector": "ECExampleConnector",
        "ec_role": role,
        "ec_connector_extra_config": {"shared_storage_path": str(store)},
    }


TRUSTED = {"nemotron_vl": {"trusted_uuids": True}}


def options(role: str, store: Path) -> dict:
    return {
        "dtype": "float32",
        "ec_transfer_config": connector(role, store),
        "additional_config": TRUSTED,
    }


@pytest.fixture(scope="module")
def encoder(make_llm, tiny, store) -> LLM:
    return make_llm(tiny, **options("ec_producer", store))


@pytest.fixture(scope="module")
def reader(make_llm, tiny, store) -> LLM:
    return make_llm(tiny, **options("ec_consumer", store), **NO_TOWER)


@pytest.fixture(scope="module")
def server(tiny, store, tmp_path_factory):
    """It has a tower, and so can do without the encoder."""
    config = json.dumps(connector("ec_consumer", store))
    log = tmp_path_factory.mktemp("server") / "log"
    options = [*SERVER_OPTIONS, ONE_WORKER, EXACT, f"--ec-transfer-config={config}"]
    options += ["--trust-request-mm-kwargs"]
    options += [f"--additional-config={json.dumps(TRUSTED)}"]
    with forked_servers(), serving(tiny, *options, log=log) as url:
        yield url


def prompt(texts: list[str]) -> str:
    """In the checkpoint's chat format, as a server writes it."""
    images = "<image>\n" * len(texts)
    return (
        f"<|start_header_id|>user<|end_header_id|>\n\n{images}{QUESTION}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.fixture(scope="module")
def expected(tiny) -> dict[str, tuple[list[int], str]]:
    """The reference's answer to each question, as tokens and as text."""
    reference = Reference.load(tiny)
    found = {}
    for name, texts in QUESTIONS.items():
        images = [draw_text(text) for text in texts]
        ids = reference.answer(prompt(texts), images, GREEDY.max_tokens)[1]
        found[name] = ids, reference.tokenizer.decode(ids)
    return found


def encode(encoder: LLM, texts: list[str]) -> tuple[list[str], list[int]]:
    """Encode images; their names in the store, and their numbers of tiles."""
    load = ImageMediaIO().load_bytes  # as a server does, for the same names
    images = [load(saved(draw_text(text), "PNG")) for text in texts]
    request = {"prompt": prompt(texts), "multi_modal_data": {"image": images}}
    (output,) = encoder.generate(request, use_tqdm=False)
    assert not output.outputs[0].token_ids
    names, tiles = [""] * len(texts), [0] * len(texts)
    for name, item in output.ec_transfer_params.items():
        for place in item["item_indices"]:
            names[place] = name
            (tiles[place],) = item["metadata"][NUM_TILES]
    return names, tiles


def read(reader: LLM, texts: list[str], names: list[str], tiles: list[int]):
    request = {
        "prompt": prompt(texts),
        "multi_modal_data": {"image": {NUM_TILES: torch.tensor(tiles)}},
        "multi_modal_uuids": {"image": names},
    }
    (output,) = reader.generate(request, GREEDY, use_tqdm=False)
    return [*output.outputs[0].token_ids]


def chat(url: str, *images: dict, **extra) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*images, text_part(QUESTION)]}],
        "max_tokens": GREEDY.max_tokens,
        "temperature": 0,
        "skip_special_tokens": False,
        "ignore_eos": True,
        **extra,
    }
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def tiles_part(name: str | None, tiles: object) -> dict:
    part = {"type": "image_embeds", "image_embeds": {NUM_TILES: tiles}}
    return part if name is None else {**part, "uuid": name}


def test_each_engine_has_its_own_part_of_the_model(encoder, reader):
    """The encoder has no language model, the reader no tower and no connector."""
    (counts,) = encoder.apply_model(count_parameters)
    assert (
        counts["language model"] == 0 < min(counts["vision tower"], counts["connector"])
    )
    (counts,) = reader.apply_model(count_parameters)
    assert counts["vision tower"] == counts["connector"] == 0 < counts["language model"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_equal_the_references(encoder, reader, server, expected, name):
    texts = QUESTIONS[name]
    tokens, text = expected[name]
    names, tiles = encode(encoder, texts)
    assert read(reader, texts, names, tiles) == tokens
    parts = [
        tiles_part(*item) for item in zip(names, [[n] for n in tiles], strict=True)
    ]
    assert content(chat(server, *parts)) == text
    images = [png_part(draw_text(text)) for text in texts]
    assert content(chat(server, *images)) == text


def test_an_image_is_not_encoded_twice(encoder, server, store):
    """The server reads what the encoder stored under the name of the image."""
    (one, other), _ = encode(encoder, ["905-4", "217-6"])
    file = "encoder_cache.safetensors"
    shutil.copy(store / other / file, store / one / file)
    answer = content(chat(server, png_part(draw_text("905-4"))))
    assert answer == content(chat(server, png_part(draw_text("217-6"))))
    assert answer.startswith("217-6")


def test_a_server_with_a_tower_can_do_without_the_encoder(encoder, server, store):
    """Whether embeddings were lost, or the encoder never saw the image."""
    (name,), _ = encode(encoder, ["905-1"])
    shutil.rmtree(store / name)
    for text in ("905-1", "480-1"):
        answer = content(chat(server, png_part(draw_text(text))))
        assert answer.startswith(text)


REFUSED = {
    "no name": (tiles_part(None, [3]), "needs the uuid"),
    "no tiles": (tiles_part("a", []), "0 image"),
    "zero": (tiles_part("a", [0]), "whole numbers from 1 to "),
    "negative": (tiles_part("a", [-3]), "whole numbers from 1 to "),
    "fraction": (tiles_part("a", [1.5]), "whole numbers"),
    "more than fit": (tiles_part("a", [257]), "whole numbers from 1 to "),
    "far more": (tiles_part("a", [10**15]), "whole numbers"),
    "words": (tiles_part("a", ["three"]), "numeric"),
    "lists of different lengths": (tiles_part("a", [[1], [2, 3]]), "numeric"),
    "two for one": (tiles_part("a", [1, 2]), "for 2 image"),
    "another field": (
        {**tiles_part("a", [3]), "image_embeds": {"image_grid_thw": [1]}},
        "image_grid_thw",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests_are_refused(server, name):
    part, cause = REFUSED[name]
    answer = chat(server, part)
    assert answer.status_code == 400, answer.text
    assert cause in answer.json()["error"]["message"]


def test_settings_belong_to_the_request_of_the_encoder(encoder, server):
    (name,), (tiles,) = encode(encoder, ["640-27"])
    part = tiles_part(name, [tiles])
    answer = chat(server, part, mm_processor_kwargs={"max_dynamic_patch": 1})
    assert answer.status_code == 400
    assert "give them to the encoder" in answer.json()["error"]["message"]


def test_embeddings_outlive_their_encoder(start_llm, tiny, encoder, reader, store):
    """And have the same name in every encoder."""
    other = start_llm(tiny, **options("ec_producer", store))
    names, tiles = encode(other, ["31-08"])
    other.llm_engine.engine_core.shutdown()
    tokens = read(reader, ["31-08"], names, tiles)
    assert reader.get_tokenizer().decode(tokens).startswith("31-08")
    assert encode(encoder, ["31-08"]) == (names, tiles)


@pytest.mark.parametrize("wrong", ["name", "number of tiles"])
def test_a_reader_without_a_tower_ends_without_embeddings(
    start_llm, tiny, store, encoder, wrong
):
    """This connector of vLLM cannot fail a single request."""
    reader = start_llm(tiny, **options("ec_consumer", store), **NO_TOWER)
    (name,), (tiles,) = encode(encoder, ["640-27"])
    (said,) = reader.apply_model(_embed_without_pixels)
    assert "EC connector has lost the embeddings" in said
    with pytest.raises(EngineDeadError):
        if wrong == "name":
            read(reader, ["640-27"], ["lost"], [tiles])
        else:
            read(reader, ["640-27"], [name], [tiles + 1])


def _embed_without_pixels(model) -> str:
    try:
        return str(model.embed_multimodal(**{NUM_TILES: torch.tensor([3])}))
    except RuntimeError as error:
        return str(error)
