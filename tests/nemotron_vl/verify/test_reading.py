"""Questions about drawn documents reach the engine or the server as they are meant."""

from types import SimpleNamespace

import pytest
from openai import OpenAI

from nemotron_vl.verify.documents import draw_documents
from nemotron_vl.verify.reading import ask_engine, ask_server
from support.fake_server import fake_server, image_of

SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def question():
    return draw_documents(1)[0]


def ask_a_server(question, system):
    with fake_server() as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        ask_server(client, "fake", system=system)([question])
    return server.requests[0]["messages"]


def ask_an_engine(question, system):
    seen = []

    def chat(chats, sampling, **_):
        assert sampling.temperature == 0
        seen.extend(chats)
        return [SimpleNamespace(outputs=[SimpleNamespace(text="")])] * len(chats)

    ask_engine(SimpleNamespace(chat=chat), system)([question])
    return seen[0]


@pytest.mark.parametrize("ask", [ask_a_server, ask_an_engine])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_system_message_precedes_the_question(question, ask, system):
    messages = ask(question, system)
    *before, asked = messages
    assert before == ([SYSTEM] if system else [])
    assert asked["role"] == "user"
    assert asked["content"][-1]["text"] == question.text
    assert image_of({"messages": messages}).size == question.images[0].size
