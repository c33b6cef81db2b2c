"""A render server and an engine answer as one server does.

``vllm launch render`` has no engine. It returns the tokens and the tiles of a chat
request, which ``/inference/v1/generate`` of an engine takes.
"""

import sys
from pathlib import Path

import httpx
import pytest

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.server import free_port, running, serving
from support.bad_requests import CASES
from support.chat import ONE_WORKER, SERVER_OPTIONS, content, png_part, text_part
from support.servers import forked_servers

READ = text_part("Read the text.")
TOKEN_BYTES = 32 * 32 * 3  # of the pixels that a token stands for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("render")


@pytest.fixture(scope="module")
def renderer(tiny, folder):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = str(Path(sys.executable).with_name("vllm"))
    command = [program, "launch", "render", str(tiny), "--host=127.0.0.1"]
    command += [f"--port={port}", *SERVER_OPTIONS]
    command += ["--trust-request-mm-kwargs", "--enable-mm-embeds"]  # of some cases
    with forked_servers(), running(command, url=url, log=folder / "render.txt"):
        yield url


@pytest.fixture(scope="module")
def engine(tiny, folder):
    options = [*SERVER_OPTIONS, ONE_WORKER, "--enable-scale-out"]
    log = folder / "engine.txt"
    with forked_servers(), serving(tiny, *options, log=log) as url:
        yield url


def post(url: str, body: dict) -> httpx.Response:
    return httpx.post(url, json=body, timeout=120)


def chat(*parts: dict) -> dict:
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": list(parts)}],
        "max_tokens": 16,
        "temperature": 0,
    }


def rendered(url: str, body: dict) -> httpx.Response:
    return post(f"{url}/v1/chat/completions/render", body)


QUESTIONS = {
    "one": (["640-27"], READ),
    "another": (["118-05"], READ),
    "two": (["640-27", "118-05"], READ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_engine_answers_a_rendered_request_as_a_chat(renderer, engine, name):
    texts, question = QUESTIONS[name]
    body = chat(*(png_part(draw_text(text)) for text in texts), question)
    expected = content(post(f"{engine}/v1/chat/completions", body))
    if len(texts) == 1:
        assert expected == texts[0]
    request = rendered(renderer, body)
    assert request.status_code == 200, request.text
    # With the tokens' ids alone an engine needs no tokenizer; here it writes text.
    answer = post(
        f"{engine}/inference/v1/generate", {**request.json(), "output_mode": "text"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == expected


def test_a_rendered_image_costs_a_third_more_than_its_tiles(renderer):
    """It is the tiles as uint8 in base64, and less than 2 kB beside them."""
    image = png_part(draw_text("640-27"))
    found = rendered(renderer, chat(image, READ)).json()
    (place,) = found["features"]["mm_placeholders"]["image"]
    (item,) = found["features"]["kwargs_data"]["image"]
    least = place["length"] * TOKEN_BYTES * 4 / 3
    assert least <= len(item) < least + 2000


# The files and data URLs need no web server and no folder of the server's.
BAD = [
    name
    for name, case in CASES.items()
    if isinstance(case.request, dict) and case.path == "/v1/chat/completions"
    if not name.startswith(("URL:", "file:"))
]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused(renderer, name):
    case = CASES[name]
    answer = rendered(renderer, {"model": "tiny", **case.request})  # type: ignore
    assert answer.status_code in case.statuses, answer.text[:500]
    sentence = answer.json()["error"]["message"].lower()
    assert any(cause in sentence for cause in case.cause.split("|")), sentence
