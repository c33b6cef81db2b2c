"""A server and the OpenAI client."""

import io
import json
import re
import time

import httpx
import jsonschema
import openai
import pytest
import torch
from PIL import Image

from many_parts import KINDS
from nemotron_vl.server import serving
from support.chat import (
    ONE_WORKER,
    data_url,
    embeds_part,
    image_part,
    png_part,
    saved,
    text_part,
)
from support.servers import forked_servers

MODEL = "tiny"


@pytest.fixture(scope="module")
def media(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("media").resolve()
    photo.save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="module")
def client(checkpoint, media, log):
    options = [
        f"--served-model-name={MODEL}",
        ONE_WORKER,
        "--dtype=float32",
        "--enforce-eager",
        "--max-model-len=1024",
        "--max-num-seqs=4",
        '--limit-mm-per-prompt={"image": 3}',
        f"--allowed-local-media-path={media}",
        "--trust-remote-code",
        "--trust-request-mm-kwargs",
        "--enable-mm-embeds",
        "--structured-outputs-config="
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
        '--additional-config={"nemotron_vl": {"tile_cache_mb": 1, '
        '"more_image_formats": ["JPEG2000", "QOI"]}}',
    ]
    with forked_servers(), serving(checkpoint, *options, log=log) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def url_part(data: bytes, kind: str = "png") -> dict:
    return image_part(data_url(data, f"image/{kind}"))


def ask(client, *parts, **options):
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": list(parts)}],
        max_tokens=12,
        temperature=0,
        **options,
    )


def reply(answer) -> tuple[int, str]:
    return answer.usage.prompt_tokens, answer.choices[0].message.content


def test_a_data_url_a_file_and_a_stream_answer_alike(client, media, photo):
    file = {"type": "image_url", "image_url": {"url": (media / "photo.png").as_uri()}}
    question = text_part("What is this?")
    expected = reply(ask(client, png_part(photo), question))
    assert expected[1]
    assert reply(ask(client, file, question)) == expected
    chunks = list(
        ask(
            client,
            png_part(photo),
            question,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (chunks[-1].usage.prompt_tokens, streamed) == expected


def test_a_format_that_the_operator_adds_is_read(client, page):
    """JPEG 2000, which is lossless here."""
    expected = reply(ask(client, png_part(page)))
    assert reply(ask(client, url_part(saved(page, "JPEG2000"), "jp2"))) == expected


def test_two_images_between_text(client, photo, page):
    text = [text_part("First"), text_part("and second."), text_part("Compare.")]

    def tokens(*images) -> tuple[int, str]:
        parts = [text[0], *images[:1], text[1], *images[1:], text[2]]
        return reply(ask(client, *parts))

    none, one, two = tokens(), tokens(png_part(photo)), None
    two = tokens(png_part(photo), png_part(page))
    assert one[0] - none[0] == 13 * 4 + 3  # <img>, </img> and a line break
    assert two[0] - one[0] == 11 * 4 + 3
    assert tokens(png_part(page), png_part(photo))[1] != two[1]


def test_settings_per_request(client, photo):
    many = ask(client, png_part(photo))
    one = ask(
        client,
        png_part(photo),
        extra_body={"mm_processor_kwargs": {"dynamic_image_size": False}},
    )
    assert many.usage.prompt_tokens - one.usage.prompt_tokens == 12 * 4


def test_structured_output_about_an_image(client, photo):
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["letter", "receipt"]},
            "paid": {"type": "boolean"},
        },
        "required": ["kind", "paid"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [png_part(photo), text_part("?")]}],
        max_tokens=60,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "document", "schema": schema},
        },
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


def test_tokenize_counts_the_tokens_of_images(client, photo):
    parts = [png_part(photo), text_part("What is this?")]
    expected = ask(client, *parts).usage.prompt_tokens
    url = str(client.base_url).removesuffix("/v1/") + "/tokenize"
    messages = [{"role": "user", "content": parts}]
    found = httpx.post(url, json={"model": MODEL, "messages": messages}, timeout=60)
    assert found.json()["count"] == expected


def test_image_embeds(client):
    plain = ask(client, text_part("?")).usage.prompt_tokens
    answer = ask(client, embeds_part(torch.zeros(4, 256)), text_part("?"))
    assert answer.usage.prompt_tokens - plain == 4 + 3


def test_completions_and_tokens(client):
    answer = client.completions.create(
        model=MODEL, prompt="Hello", max_tokens=4, temperature=0
    )
    assert answer.usage.completion_tokens == 4


SMALL = Image.new("RGB", (9, 9))


def truncated(photo: Image.Image) -> bytes:
    file = io.BytesIO()
    photo.save(file, "JPEG")
    return file.getvalue()[:4000]


BAD = {
    "typed placeholder, no image": ([text_part("<image>")], "0 image"),
    "typed placeholder, one image": (
        [png_part(SMALL), text_part("<image>")],
        "2 <image> .* for 1 image",
    ),
    "too many images": ([png_part(SMALL)] * 4, "At most 3 image"),
    "no image file": ([url_part(b"%PDF-1.7 nothing")], "cannot be opened as PNG.*QOI"),
    "a format without counts": (
        [url_part(KINDS["qoi"](25_000_000, 25_000_000))],
        "ended its decoder",
    ),
    "empty file": ([url_part(b"")], "image"),
    "wrong width": ([embeds_part(torch.zeros(4, 64))], "got 64, but model expects 256"),
    "no rows": ([embeds_part(torch.zeros(0, 256))], "at least one row"),
    "too long": ([png_part(SMALL), text_part("word " * 2000)], "maximum context"),
    "a video": (
        [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}],
        "video",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_a_sentence_and_the_next_request_is_served(client, page, case):
    parts, message = BAD[case]
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, *parts)
    assert reply(ask(client, png_part(page)))[1]


def test_a_truncated_file_gives_a_sentence(client, photo, page):
    with pytest.raises(openai.BadRequestError, match="truncated"):
        ask(client, url_part(truncated(photo), "jpeg"))
    assert reply(ask(client, png_part(page)))[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_dynamic_patch": "all"}, "max_dynamic_patch must be a whole number"),
        ({"tiles": 3}, "Unknown mm_processor_kwargs"),
    ],
    ids=str,
)
def test_bad_settings_give_a_sentence(client, photo, settings, message):
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, png_part(photo), extra_body={"mm_processor_kwargs": settings})


@pytest.mark.parametrize("prompt", ["Look: <image>", [1, 2, 3]])
def test_a_placeholder_in_a_completion_is_refused(client, checkpoint, prompt):
    if isinstance(prompt, list):
        added = json.loads((checkpoint / "tokenizer.json").read_text())["added_tokens"]
        prompt = [token["id"] for token in added if token["content"] == "<image>"]
    with pytest.raises(openai.BadRequestError, match="1 <image> .* for 0 image"):
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=4)


def test_bad_requests_do_not_disturb_good_ones(client, photo, page):
    """Good requests sent at the same time as bad ones get their usual answers."""
    from concurrent.futures import ThreadPoolExecutor

    expected = {
        name: reply(ask(client, png_part(image), text_part("?")))
        for name, image in (("photo", photo), ("page", page))
    }

    def good(name: str, image: Image.Image) -> bool:
        return reply(ask(client, png_part(image), text_part("?"))) == expected[name]

    def bad(case: str) -> bool:
        try:
            ask(client, *BAD[case][0])
        except openai.BadRequestError:
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        results = [
            job
            for case in BAD
            for job in (
                pool.submit(bad, case),
                pool.submit(good, "photo", photo),
                pool.submit(good, "page", page),
            )
        ]
        assert all(job.result() for job in results)


def test_the_log_counts_tiles_by_outcome(client, log):
    """Sends pages that differ in one corner, over more than one log interval."""
    page = Image.new("RGB", (64 * 3, 64 * 4), "white")
    for corner in ("red", "green", "blue"):
        page.paste(corner, (0, 0, 9, 9))
        ask(client, png_part(page), text_part("Read."))
        time.sleep(5.5)
    lines = re.findall(
        r"Tiles: (\d+) received, (\d+) encoded, (\d+) repeated, (\d+) cached",
        log.read_text(),
    )
    received, encoded, repeated, cached = map(int, lines[-1])
    assert received == encoded + repeated + cached
    assert repeated >= 10  # the white tiles of the first page
    assert cached >= 11  # the white tiles of a later page
