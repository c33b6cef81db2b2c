"""Videos through the server: equal to the reference, and bad ones refused.

Each bad request is sent together with a good one, whose answer must be right. The
server must answer soon, use little memory and stay up.
"""

import contextlib
import functools
import http.server
import itertools
import json
import os
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from nemotron_vl.server import serving_process
from nemotron_vl.verify.reference import Reference
from support.bad_clips import ODD_CLIPS, slow
from support.bad_video_requests import CLIP, FILES, FRAMES, REQUESTS
from support.chat import (
    EXACT,
    EXIT_STATUS,
    ONE_WORKER,
    content,
    data_url,
    png_part,
    text_part,
)
from support.clips import VIDEO_SWITCH, encoded, noise, url_part, video_part
from support.decoders import decoders
from support.hostile import bounded_decoders, bounded_memory
from support.servers import forked_servers
from vllm_nemotron_vl.config.nemotron_vl_video import MOST_BYTES, MOST_SECONDS

SECONDS, MEGABYTES, DECODER_MEGABYTES = 30, 900, 2500
READ = text_part("Read the text.")
KEY = "a-key-of-the-server"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def reference(tiny) -> Reference:
    return Reference.load(tiny)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("video").resolve()


@pytest.fixture(scope="module")
def server(tiny, folder):
    media = folder / "media"
    media.mkdir()
    (media / "clip.mkv").write_bytes(encoded(FRAMES))
    (media / "empty.mkv").touch()
    with (media / "large.mkv").open("wb") as large:
        large.truncate(MOST_BYTES + 1)
    (media / "loop").symlink_to("loop")
    pages = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0),
        functools.partial(http.server.SimpleHTTPRequestHandler, directory=media),
    )
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    options = [
        *VIDEO_SWITCH,
        ONE_WORKER,
        "--served-model-name=tiny",
        "--dtype=float32",
        "--enforce-eager",
        "--max-model-len=1024",
        "--max-num-seqs=4",
        '--limit-mm-per-prompt={"image": 2, "video": 2}',
        EXACT,
        f"--allowed-local-media-path={media}",
        "--trust-request-mm-kwargs",
        "--enable-mm-embeds",
        f"--middleware={EXIT_STATUS.removeprefix('--middleware=')}",
    ]
    # Files that a text could name lie in the server's working directory.
    (folder / "secret.mkv").write_bytes(encoded(FRAMES))
    log = folder / "log.txt"
    env = {
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # freed memory goes back at once
        "VLLM_API_KEY": KEY,
    }
    serving = serving_process(tiny, *options, log=log, env=env)
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(folder), forked_servers():
            process, url = stack.enter_context(serving)
        address = f"http://localhost:{pages.server_address[1]}"
        yield url, process.pid, media, address
    pages.shutdown()


def ask(server, *parts, **options) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*parts, READ]}],
        "max_tokens": 12,
        "temperature": 0,
        "skip_special_tokens": False,
        "ignore_eos": True,
        **options,
    }
    url = f"{server[0]}/v1/chat/completions"
    return httpx.post(url, json=body, headers=HEADERS, timeout=2 * MOST_SECONDS)


def expected(reference, *parts: str, videos=(), images=()) -> str:
    text = "\n".join([*parts, READ["text"]])
    prompt = (
        f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = reference.answer(prompt, list(images), 12, videos)[1]
    return reference.tokenizer.decode(ids)


def good_answer(server) -> str:
    return content(ask(server, CLIP))


def test_a_data_url_a_file_and_a_fetched_clip_equal_the_reference(server, reference):
    _, _, media, pages = server
    urls = [
        data_url(encoded(FRAMES), "video/x-matroska"),
        data_url(encoded(FRAMES), "video/mp4"),  # the content decides, not the name
        f"file://{media}/clip.mkv",
        f"{pages}/clip.mkv",
    ]
    answer = expected(reference, "<img></img>", videos=[FRAMES])
    for url in urls:
        assert content(ask(server, url_part(url))) == answer


def test_a_video_between_images(server, reference):
    images, videos = noise(2), [noise(5), FRAMES]
    first, second = map(png_part, images)
    found = ask(server, first, video_part(encoded(videos[0])), second)
    text = "<image>", "<img></img>", "<image>"
    assert content(found) == expected(
        reference, *text, videos=videos[:1], images=images
    )
    found = ask(server, *(video_part(encoded(video)) for video in videos))
    text = "<img></img>", "<img></img>"
    assert content(found) == expected(reference, *text, videos=videos)


def test_first_odds_and_prompt_tokens(server, reference):
    found = ask(server, CLIP, max_tokens=1, logprobs=True, top_logprobs=5).json()
    text = "<img></img>\nRead the text."
    prompt = (
        f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids, _, logprobs = reference.answer(prompt, [], 1, [FRAMES])
    assert found["usage"]["prompt_tokens"] == len(ids)
    best = logprobs.topk(5)
    (first,) = found["choices"][0]["logprobs"]["content"]
    odds = [entry["logprob"] for entry in first["top_logprobs"]]
    assert odds == pytest.approx(best.values.tolist(), abs=1e-3)


def test_a_trusted_request_may_take_fewer_frames(server, reference):
    frames = noise(9)
    found = ask(
        server,
        video_part(encoded(frames)),
        media_io_kwargs={"video": {"num_frames": 3}},
    )
    taken = frames[::4]
    assert content(found) == expected(reference, "<img></img>", videos=[taken])


def test_a_uuid_may_stand_for_a_video_and_an_image(server, reference):
    image, parts = noise(1)[0], []
    for data in (png_part(image), CLIP):
        parts.append({**data, "uuid": "same"})
    answer = expected(
        reference, "<image>", "<img></img>", videos=[FRAMES], images=[image]
    )
    assert content(ask(server, *parts, cache_salt="me")) == answer
    cached = [{**part, part["type"]: None} for part in parts]
    assert content(ask(server, *cached, cache_salt="me")) == answer


def ask_beside_a_good_one(server, reference, *parts, **options) -> httpx.Response:
    """The answer to a request; it takes at most the time limit of `ask`."""
    good = expected(reference, "<img></img>", videos=[FRAMES])
    with (
        bounded_memory(MEGABYTES, server[1]),
        bounded_decoders(DECODER_MEGABYTES, server[1]),
        ThreadPoolExecutor(1) as threads,
    ):
        other = threads.submit(good_answer, server)
        found = ask(server, *parts, **options)
        assert other.result() == good
    return found


@pytest.mark.parametrize("name", [*REQUESTS, *FILES])
def test_a_bad_request_is_refused(server, reference, name):
    if name in FILES:
        request = (url_part(name.format(media=server[2])),), {}, FILES[name]
    else:
        request = REQUESTS[name]
    parts, options, cause = request
    parts = [video_part(part()) if callable(part) else part for part in parts]
    start = time.monotonic()
    bad = ask_beside_a_good_one(server, reference, *parts, **options)
    assert time.monotonic() - start < SECONDS
    assert 400 <= bad.status_code < 500, bad.text[:500]
    sentence = bad.json()["error"]["message"]
    assert cause in sentence.lower(), sentence


def test_too_few_files_are_an_error_of_the_server(server, reference):
    """The client may send the same request later."""
    pid = server[1]
    used = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    free = (fd for fd in itertools.count() if fd not in used)
    few = next(itertools.islice(free, 2, None))  # one for the connection, one more
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, old[1]))
    try:
        refused = ask(server, CLIP)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, old)
    assert refused.status_code == 500, refused.text
    assert "Too many open files" in refused.text
    good = expected(reference, "<img></img>", videos=[FRAMES])
    assert good_answer(server) == good


def wait_for_decoders(server, count: int) -> list[str]:
    end = time.monotonic() + 5  # of the 20 s that `slow` takes
    while len(found := decoders(server[1])) != count:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("videos", [1, 2])
def test_a_decoder_ends_when_its_client_leaves(server, reference, videos):
    """It knows nothing of the server's key."""
    host, port = server[0].removeprefix("http://").split(":")
    messages = [{"role": "user", "content": [video_part(slow())] * videos}]
    body = json.dumps({"model": "tiny", "messages": messages})
    with contextlib.closing(HTTPConnection(host, int(port))) as client:
        kind = {"Content-Type": "application/json", **HEADERS}
        client.request("POST", "/v1/chat/completions", body, kind)
        for pid in wait_for_decoders(server, videos):
            assert KEY not in Path("/proc", pid, "environ").read_text()
    wait_for_decoders(server, 0)
    good = expected(reference, "<img></img>", videos=[FRAMES])
    assert good_answer(server) == good


@pytest.mark.parametrize("name", ODD_CLIPS)
def test_an_odd_clip_is_answered(server, reference, name):
    data, frames = ODD_CLIPS[name]()
    found = ask_beside_a_good_one(server, reference, video_part(data))
    if frames is None:
        assert content(found)
    else:
        assert content(found) == expected(reference, "<img></img>", videos=[frames])
