"""The connection to a server: its key, its patience, and what it says."""

import asyncio

import openai
import pytest

from nemotron_vl.documents import client
from nemotron_vl.documents.client import connect, keys_of, retries
from support.fake_server import fake_server


@pytest.mark.parametrize(
    ("url", "variables", "key"),
    [
        ("http://127.0.0.1:1", {"OPENAI_API_KEY": "o"}, "o"),
        ("http://localhost:1/v1", {"OPENAI_API_KEY": "o"}, "o"),
        ("https://host.example", {"OPENAI_API_KEY": "o"}, "o"),
        ("http://host.example", {"OPENAI_API_KEY": "o"}, "none"),
        ("http://127.0.0.1.host.example", {"OPENAI_API_KEY": "o"}, "none"),
        ("http://127.0.0.1@host.example", {"OPENAI_API_KEY": "o"}, "none"),
        ("http://host.example", {"NEMOTRON_VL_API_KEY": "n"}, "n"),
        (
            "http://host.example",
            {"NEMOTRON_VL_API_KEY": "n", "OPENAI_API_KEY": "o"},
            "n",
        ),
        ("http://host.example", {"OPENAI_API_KEY": ""}, "none"),
    ],
)
def test_which_key_is_sent(monkeypatch, url, variables, key):
    for name in ("OPENAI_API_KEY", "NEMOTRON_VL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = []
    assert connect(url, tell=told.append).api_key == key
    withheld = key == "none" and variables["OPENAI_API_KEY"]
    assert [text for text in told if "is not sent without TLS" in text] == told
    assert bool(told) == bool(withheld)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://host.example:443/v1", "n"),
        ("http://host.example:443", "none"),
        ("https://host.example:8443", "none"),
        ("https://other.example", "none"),
    ],
)
def test_a_key_goes_only_to_its_server(monkeypatch, url, key):
    monkeypatch.setenv("NEMOTRON_VL_API_KEY", "n")
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    first = "https://HOST.example/v1"
    assert connect(url, keys=keys_of(url, "RANKS", None)).api_key == "none"
    assert connect(url, keys=keys_of(url, "RANKS", first)).api_key == key
    monkeypatch.setenv("RANKS", "r")
    assert connect(url, keys=keys_of(url, "RANKS", first)).api_key == "r"


def test_no_other_variable_of_openai_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Key: secret")
    headers = connect("http://host.example").default_headers
    assert "secret" not in map(str, headers.values())


@pytest.mark.parametrize(("wait", "count"), [(0, 0), (1, 2), (6.5, 4), (120, 21)])
def test_retries_fill_the_time(wait, count):
    assert retries(wait) == count


def test_a_server_that_is_away_is_told_once(monkeypatch):
    monkeypatch.setattr(client, "retries", lambda wait: 4)
    told = []

    async def ask(times):
        async with connect(server.url, wait=9, tell=told.append) as connected:
            for _ in range(times):
                await connected.models.list()
                await connected.chat.completions.create(
                    model="fake", messages=[{"role": "user", "content": "?"}]
                )

    with fake_server() as server:
        server.busy = 3
        asyncio.run(ask(1))
        assert told == [
            "The server answers 503. Waiting for up to 9 s (--wait) ...",
            "The server answers again.",
        ]
        told.clear()
        server.failures = [503]
    with pytest.raises(openai.APIConnectionError):
        asyncio.run(ask(1))
    assert told == []  # it was never there, so the caller does not wait
