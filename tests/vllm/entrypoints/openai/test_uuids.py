"""A uuid of one client neither reads nor replaces an image or a video of another one.

Servers of both architectures, with each of vLLM's caches of processed images, and with
several API servers. Prefix caching is on. What clients send differs between tests, so
that nobody but the attacker has sent it before.
"""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import pytest

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.server import serving
from nemotron_vl.verify.reference import Reference
from support.chat import (
    EXACT,
    ONE_WORKER,
    SERVER_OPTIONS,
    content,
    png_part,
    text_part,
)
from support.clips import VIDEO_SWITCH, encoded, numbers, video_part
from support.content_hash import ContentHash
from support.servers import forked_servers

TOKENS = 8
# Clients: one without a salt, and two with salts of their own.
NOBODY, ONE, OTHER = {}, {"cache_salt": "of the one"}, {"cache_salt": "of the other"}
PAIRS = [(NOBODY, NOBODY), (NOBODY, ONE), (ONE, NOBODY), (ONE, OTHER)]
READ = text_part("Read the text.")
LONG = text_part(" ".join([READ["text"]] * 12))  # fills blocks of the prefix cache


class Service(NamedTuple):
    url: str
    modality: str
    api_servers: int
    log: Any


SERVICES = {
    "images, lru": ("image", 1, ["--mm-processor-cache-type=lru"]),
    "videos, shm": ("video", 1, ["--mm-processor-cache-type=shm"]),
    "images, two API servers": ("image", 2, ["--api-server-count=2"]),
}


@pytest.fixture(scope="module", params=SERVICES)
def service(request, tiny, tmp_path_factory):
    modality, api_servers, more = SERVICES[request.param]
    log = tmp_path_factory.mktemp("uuids") / "log.txt"
    options = [*SERVER_OPTIONS, ONE_WORKER, EXACT, "--block-size=32"]
    options += ["--enable-prompt-tokens-details", "--enable-log-requests", *more]
    if modality == "video":
        options += VIDEO_SWITCH
    with forked_servers(), serving(tiny, *options, log=log) as url:
        yield Service(url, modality, api_servers, log)


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


_numbers = itertools.count(101, 7)


class Item(NamedTuple):
    """An image or a video that no other test sends."""

    part: dict
    answer: Callable[[dict], str]

    def named(self, uuid: Any) -> dict:
        return {**self.part, "uuid": uuid}

    def alone(self, uuid: Any) -> dict:
        """The uuid without the data."""
        return {**self.part, self.part["type"]: None, "uuid": uuid}


@pytest.fixture
def new(service, reference):
    def make() -> Item:
        text = f"{next(_numbers)}-{next(_numbers) % 90}"
        given: dict[str, Any]
        if service.modality == "image":
            image = draw_text(text)
            part, place, given = png_part(image), "<image>", {"images": [image]}
        else:
            frames = numbers(text, text[:3])
            part, place = video_part(encoded(frames)), "<img></img>"
            given = {"images": [], "videos": [frames]}

        def answer(question: dict) -> str:
            ids = reference.answer(
                "<|start_header_id|>user<|end_header_id|>\n\n"
                f"{place}\n{question['text']}<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
                given["images"],
                TOKENS,
                given.get("videos", ()),
            )[1]
            return reference.tokenizer.decode(ids)

        return Item(part, answer)

    return make


@pytest.fixture(scope="module")
def content_hash(tiny) -> ContentHash:
    return ContentHash(tiny)


def ask(
    service: Service, part: dict, client: dict, question: dict = READ
) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [part, question]}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "skip_special_tokens": False,
        "ignore_eos": True,
        **client,
    }
    return httpx.post(
        f"{service.url}/v1/chat/completions",
        content=json.dumps(body),  # which writes halves of surrogate pairs, too
        headers={"Content-Type": "application/json"},
        timeout=120,
    )


def message(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    return response.json()["error"]["message"]


def cached_tokens(response: httpx.Response) -> int:
    details = response.json()["usage"]["prompt_tokens_details"]
    return (details or {}).get("cached_tokens") or 0


@pytest.mark.parametrize(("attacker", "victim"), PAIRS, ids=str)
def test_nobody_can_put_another_item_under_the_hash_of_one(
    service, new, content_hash, attacker, victim
):
    known, other = new(), new()
    for _ in range(2 * service.api_servers):
        ask(service, other.named(content_hash(known.part)), attacker, LONG)
    for _ in range(service.api_servers):
        found = ask(service, known.part, victim, LONG)
        assert content(found) == known.answer(LONG)


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_two_clients_may_use_one_uuid(service, new, one, other):
    mine, theirs, name = new(), new(), f"patient-{next(_numbers)}"
    for _ in range(2 * service.api_servers):
        assert content(ask(service, mine.named(name), one)) == mine.answer(READ)
    for _ in range(service.api_servers):
        assert content(ask(service, theirs.named(name), other)) == theirs.answer(READ)


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_a_uuid_alone_reads_nothing_of_another_client(service, new, one, other):
    item, name = new(), f"patient-{next(_numbers)}"
    before = message(ask(service, item.alone(name), other))
    for _ in range(2 * service.api_servers):
        content(ask(service, item.named(name), one))
    for _ in range(service.api_servers):
        assert message(ask(service, item.alone(name), other)) == before
    assert "cache_salt" in before if not other else "data is not provided" in before


@pytest.mark.parametrize("one", [NOBODY, ONE], ids=str)
def test_the_hash_of_an_item_does_not_tell_whether_anyone_sent_it(
    service, new, content_hash, one
):
    item, clients = new(), (NOBODY, ONE, OTHER)
    name = content_hash(item.part)
    before = [message(ask(service, item.alone(name), client)) for client in clients]
    for _ in range(2 * service.api_servers):
        content(ask(service, item.part, one))
    after = [message(ask(service, item.alone(name), client)) for client in clients]
    assert after == before


def test_a_client_may_read_its_own_item_again(service, new):
    item, name = new(), f"invoice-{next(_numbers)}"
    for _ in range(6 * service.api_servers):
        assert content(ask(service, item.named(name), ONE)) == item.answer(READ)
    found = [ask(service, item.alone(name), ONE) for _ in range(4)]
    answered = [response for response in found if response.status_code == 200]
    # Each API server has a cache of its own, if there are several.
    assert len(answered) == 4 if service.api_servers == 1 else answered
    assert {content(response) for response in answered} == {item.answer(READ)}


def test_all_api_servers_make_the_same_key(service, new):
    """So the engine's caches have one entry for a name, whoever has rendered it."""
    item, name = new(), f"form-{next(_numbers)}"
    start = len(service.log.read_text())
    found = [ask(service, item.named(name), ONE, LONG) for _ in range(12)]
    assert {content(response) for response in found} == {item.answer(LONG)}
    assert cached_tokens(found[0]) == 0
    assert all(cached_tokens(response) >= 32 for response in found[1:])
    if service.api_servers > 1:
        lines = service.log.read_text()[start:]
        served = re.findall(r"\(ApiServer_(\d) .*Received request", lines)
        assert set(served) == {"0", "1"}


BAD = {
    "half of a surrogate pair": "\ud800",
    "the other half": "a\udfff",
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("client", [NOBODY, ONE], ids=str)
def test_names_that_are_no_text_are_refused(service, new, case, client):
    item = new()
    for part in (item.named(BAD[case]), item.alone(BAD[case])):
        assert "uuid must be a text" in message(ask(service, part, client))
    assert content(ask(service, item.part, client)) == item.answer(READ)
