"""Bad requests get status 4xx and a message, and do not disturb other requests.

Each case is sent to one server together with a good request, whose answer must
be right. The server must answer soon, use little memory and stay up.
"""

import http.server
import io
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError

from nemotron_vl.images.drawn import draw_text
from nemotron_vl.server import serving_process
from support.bad_files import SMALL, png_bomb
from support.bad_requests import (
    CASES,
    IMAGE,
    IMAGES,
    READ,
    Case,
    Server,
    chat,
    file_of,
)
from support.chat import ONE_WORKER, SERVER_OPTIONS, image_part, saved, text_part
from support.hostile import bounded_memory
from support.served import sums_at
from support.servers import forked_servers

SECONDS, MEGABYTES = 20, 900
GOOD = "640-27"


# Odd requests that are answered, with the answer where it is known


def animated(kind: str) -> dict:
    frames = [draw_text(GOOD), draw_text("111-11")]
    return file_of(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


WHOLE = saved(draw_text(GOOD), "PNG")
ODD: dict[str, tuple[dict, str | None]] = {
    "1x1": (file_of(saved(SMALL.resize((1, 1)), "PNG")), None),
    "100,000x1": (file_of(saved(SMALL.resize((100_000, 1)), "PNG")), None),
    "1x60,000": (file_of(saved(SMALL.resize((1, 60_000)), "PNG")), None),
    "first frame of a GIF": (animated("GIF"), GOOD),
    "first frame of a WebP": (animated("WEBP"), GOOD),
    "first frame of an APNG": (animated("PNG"), GOOD),
    "PNG named JPEG": (file_of(WHOLE, "image/jpeg"), GOOD),
    "PNG named text": (file_of(WHOLE, "text/plain"), GOOD),
    "PNG named SVG": (file_of(WHOLE, "image/svg+xml"), GOOD),
    "bytes after the end": (file_of(WHOLE + b"<script>"), GOOD),
    "image of the system": (
        {
            "messages": [
                {"role": "system", "content": [IMAGE, text_part("Look.")]},
                {"role": "user", "content": [IMAGE, READ]},
            ]
        },
        None,
    ),
}


# The server


class Pages(http.server.BaseHTTPRequestHandler):
    """A web server whose answer depends on the path; ``asked`` records the paths.

    It shows ``private`` only to the client that it gave a cookie, in ``login``.
    """

    asked: list[str] = []

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.asked.append(name)
        status = {"404": 404, "403": 403, "500": 500, "redirect": 302}.get(name, 200)
        self.send_response(status)
        if name == "login":
            self.send_header("Set-Cookie", "session=1; Path=/")
        if name == "redirect":
            port = self.server.server_address[1]
            self.send_header("Location", f"http://127.0.0.1:{port}/secret")
        self.end_headers()
        try:
            if name == "endless":
                for _ in range(400):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.25)
            elif name == "huge":
                for _ in range(600):
                    self.wfile.write(bytes(1_000_000))
            elif name == "private" and self.headers["Cookie"]:
                self.wfile.write(saved(draw_text("777-77"), "PNG"))
            elif name in ("image", "login", "private"):
                self.wfile.write(saved(draw_text(GOOD), "PNG"))
            else:
                self.wfile.write(b"<title>a page</title>")
        except OSError:
            pass  # the client has disconnected

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad").resolve()
    media = folder / "media"
    (media / "folder").mkdir(parents=True)
    draw_text(GOOD).save(folder / "secret.png")
    draw_text(GOOD).save(media / "good.png")
    (media / "text.png").write_text("no image")
    os.mkfifo(media / "pipe.png")
    with (media / "large.png").open("wb") as large:
        large.truncate((256 << 20) + 1)
    (media / "link.png").symlink_to(folder / "secret.png")
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    options = [
        *SERVER_OPTIONS,
        ONE_WORKER,
        f"--allowed-local-media-path={media}",
        *("--allowed-media-domains", "localhost"),
        "--trust-request-mm-kwargs",
        "--enable-mm-embeds",
    ]
    env = {
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_IMAGE_FETCH_TIMEOUT": "3",
        "VLLM_MEDIA_FETCH_MAX_RETRIES": "1",  # each retry waits four times longer
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # freed memory goes back at once
    }
    log = folder / "log.txt"
    with (
        forked_servers(),
        serving_process(tiny, *options, log=log, env=env) as (process, url),
    ):
        address = f"http://localhost:{pages.server_address[1]}"
        yield Server(url, process.pid, media, address)
    pages.shutdown()


def post(server: Server, case: Case) -> httpx.Response:
    body = case.request(server) if callable(case.request) else case.request
    return httpx.post(
        server.url + case.path, json={"model": "tiny", **body}, timeout=2 * SECONDS
    )


def good_answer(server: Server) -> str:
    parts = image_part(f"file://{server.media}/good.png")
    response = post(server, Case(chat(parts), ""))
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def test_there_are_many_cases_and_each_names_its_cause():
    assert len(CASES) >= 150
    assert all(len(case.cause) >= 4 for case in CASES.values())


def test_good_requests_are_answered(server):
    assert good_answer(server) == GOOD
    page = post(server, Case(chat(image_part(f"{server.pages}/image")), ""))
    assert page.json()["choices"][0]["message"]["content"] == GOOD


def test_a_client_gets_no_cookie_of_another_one(server):
    for page in ("login", "private"):
        answer = post(server, Case(chat(image_part(f"{server.pages}/{page}")), ""))
        assert answer.json()["choices"][0]["message"]["content"] == GOOD


@pytest.mark.parametrize("name", ODD)
def test_an_odd_request_is_answered(server, name):
    request, expected = ODD[name]
    response = post(server, Case(request, ""))
    assert response.status_code == 200, response.text
    if expected is not None:
        assert response.json()["choices"][0]["message"]["content"] == expected


LARGE = [
    ("RGB", "PNG", 6000),
    ("LA", "PNG", 6000),
    ("CMYK", "JPEG", 6000),
    ("RGBA", "WEBP", 4000),
    ("RGB", "TIFF", 6000),
]


@pytest.mark.parametrize(("mode", "kind", "side"), LARGE)
def test_eight_large_images_at_once(server, mode, kind, side):
    """Within the bound of docs/security.md."""
    count = 8
    data = saved(Image.new(mode, (side, side)), kind)
    request = Case(file_of(data, f"image/{kind.lower()}"), "")
    pixels = side * side
    bound = count * (24 * pixels + 4 * len(data)) + 100e6
    with bounded_memory(bound / 1e6, server.pid), ThreadPoolExecutor(count) as threads:
        found = list(threads.map(lambda _: post(server, request), range(count)))
    assert [response.status_code for response in found] == [200] * count


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_refused(server, name):
    case = CASES[name]
    start = time.monotonic()
    with bounded_memory(MEGABYTES, server.pid), ThreadPoolExecutor(2) as threads:
        good = threads.submit(good_answer, server)
        bad = post(server, case)
        elapsed = time.monotonic() - start
        assert good.result() == GOOD
    assert bad.status_code in case.statuses, bad.text[:500]
    sentence = bad.json()["error"]["message"]
    assert sentence.strip()
    assert any(cause in sentence.lower() for cause in case.cause.split("|")), sentence
    assert "secret" not in Pages.asked
    assert elapsed < SECONDS


# A case of each cause that `/metrics` names, see docs/monitoring.md
COUNTED = {
    "three images": "too_many",
    "audio": "too_many",
    "long text": "too_long",
    "longer text": "too_long",
    "embeds: long": "too_long",
    "bomb PNG": "too_large",
    "file: large": "too_large",
    "URL: other host": "not_allowed",
    "URL: passwd": "not_allowed",
    "URL: closed port": "not_fetched",
    "typed: placeholder": "placeholder",
    "completion": "placeholder",
    "data URL: text": "unreadable",
    "data URL: not base64": "unreadable",
    "setting: max zero": "other",
    "no messages": "other",
}


def refusals(server: Server) -> Counter:
    return sums_at(server.url, "vllm:mm_requests_refused_total", "cause")


@pytest.mark.parametrize(("name", "cause"), COUNTED.items())
def test_a_refusal_is_counted_by_its_cause(server, name, cause):
    good_answer(server)
    before = refusals(server)
    post(server, CASES[name])
    assert refusals(server) - before == Counter([cause])


def test_a_long_prompt_that_is_only_tokenized_is_not_refused(server):
    before = refusals(server)
    prompts = (CASES["long text"].request, {"prompt": "9 " * 5000})
    for request in prompts:
        answer = post(server, Case(request, "", path="/tokenize"))
        assert answer.status_code == 200 and answer.json()["count"] > 1024
    assert refusals(server) == before


# The offline API


@pytest.fixture(scope="module")
def llm(make_llm, tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
        yield make_llm(
            tiny,
            dtype="float32",
            max_model_len=1024,
            limit_mm_per_prompt={"image": 2},
            allowed_local_media_path=str(tmp_path_factory.mktemp("media").resolve()),
            allowed_media_domains=["localhost"],
            enable_mm_embeds=True,
        )


def test_there_are_many_offline_cases():
    assert len(IMAGES) >= 150


@pytest.mark.parametrize("name", IMAGES)
def test_a_bad_offline_request_raises_an_error_with_the_cause(llm, name):
    request = CASES[name].request
    assert isinstance(request, dict)
    sampling = SamplingParams(temperature=0, max_tokens=12)
    with pytest.raises((VLLMClientError, ValueError)) as error:
        llm.chat(request["messages"], sampling, use_tqdm=False)
    sentence = str(error.value).lower()
    assert any(cause in sentence for cause in CASES[name].cause.split("|")), sentence
    image = {"type": "image_pil", "image_pil": draw_text(GOOD)}
    good = [{"role": "user", "content": [image, READ]}]
    (output,) = llm.chat(good, sampling, use_tqdm=False)
    assert output.outputs[0].text == GOOD


@pytest.mark.parametrize("size", [(20_000, 20_000), (200_000_000, 1)])
def test_offline_images_are_measured_before_they_are_decoded(llm, size):
    bomb = io.BytesIO(png_bomb(30_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # many programs do this
        image = Image.open(bomb)
        image.load = lambda: pytest.fail("the image was decoded")  # type: ignore
        image._size = size
        prompt = {"prompt": "<image>", "multi_modal_data": {"image": image}}
        with pytest.raises(VLLMClientError, match="VLLM_MAX_IMAGE_PIXELS"):
            llm.generate([prompt], use_tqdm=False)
