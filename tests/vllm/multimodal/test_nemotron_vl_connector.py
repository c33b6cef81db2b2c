"""The connector that loads images: what it checks, and the threads that it takes."""

import asyncio
import contextlib
import os
import threading

import pytest
from PIL import TiffImagePlugin
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from support.bad_files import SMALL, with_broken_exif
from support.chat import data_url, saved
from vllm_nemotron_vl.multimodal import nemotron_vl_loading
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import (
    CheckedImageIO,
    NemotronVLConnector,
    check_and_load_images,
    share_threads,
)


@pytest.fixture
def connector(monkeypatch):
    monkeypatch.setattr(
        MEDIA_CONNECTOR_REGISTRY,
        "name2class",
        MEDIA_CONNECTOR_REGISTRY.name2class.copy(),
    )
    monkeypatch.setattr(NemotronVLConnector, "more_formats", ())
    monkeypatch.setattr(NemotronVLConnector, "load", None)
    check_and_load_images(["PPM"])
    return MEDIA_CONNECTOR_REGISTRY.load("http")


def test_vllms_connector_checks_images(connector):
    assert connector.fetch_image(data_url(saved(SMALL, "PPM"))).media.size == (60, 40)
    with pytest.raises(VLLMValidationError, match="none of|cannot be opened as"):
        connector.fetch_image(data_url(saved(SMALL, "PCX")))


def test_the_given_decoder_gets_the_files_that_were_opened(connector):
    files = []
    check_and_load_images([], load=lambda image, data: files.append((image, data)))
    data = saved(SMALL, "PNG")
    assert MEDIA_CONNECTOR_REGISTRY.load("http").fetch_image(data_url(data))
    ((image, given),) = files
    assert (image.size, given) == (SMALL.size, data)


def asynchronously(connector, url):
    return asyncio.run(connector.fetch_image_async(url))


def as_llm_does(connector, url):
    return connector.fetch_image(url)


def written(pipe) -> None:
    """Write, so that nobody who opens the pipe waits for ever."""
    with contextlib.suppress(BrokenPipeError):
        pipe.write_bytes(b"x")


@pytest.mark.parametrize("fetch", [asynchronously, as_llm_does])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [("pipe", "not a regular file"), ("large", "has 1048577 bytes; at most 1048576")],
)
def test_only_regular_files_of_some_size_are_read(
    connector, tmp_path, monkeypatch, fetch, kind, reason
):
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "1")
    file = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(file)
        threading.Thread(target=written, args=[file], daemon=True).start()
    else:
        file.write_bytes(bytes((1 << 20) + 1))
    own = NemotronVLConnector(allowed_local_media_path=str(tmp_path))
    with pytest.raises(VLLMValidationError, match=f"image cannot be read: .*{reason}"):
        fetch(own, f"file://{file}")


@pytest.mark.parametrize("fetch", [asynchronously, as_llm_does])
def test_regular_files_are_read(tmp_path, fetch):
    SMALL.save(tmp_path / "a.png")
    own = NemotronVLConnector(allowed_local_media_path=str(tmp_path))
    assert fetch(own, f"file://{tmp_path}/a.png").media.size == (60, 40)


def test_pillows_warnings_do_not_pile_up(connector):
    kept = vars(TiffImagePlugin).setdefault("__warningregistry__", {})
    connector.fetch_image(data_url(with_broken_exif(37500)))
    before = len(kept)
    for tag in range(37501, 37520):
        connector.fetch_image(data_url(with_broken_exif(tag)))
    assert len(kept) == before


def test_another_connector_is_named_in_a_warning(connector, monkeypatch, caplog):
    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "mine")
    monkeypatch.setattr(nemotron_vl_loading.logger, "propagate", True)
    check_and_load_images([])
    assert "VLLM_MEDIA_CONNECTOR (mine)" in caplog.text


def test_the_images_of_a_request_take_half_of_the_threads(connector, monkeypatch):
    """In several messages, too: each has a connector of its own."""
    half = envs.VLLM_MEDIA_LOADING_THREAD_COUNT // 2
    running, most, all_in = 0, 0, threading.Condition()

    def load_bytes(self, data):
        nonlocal running, most
        with all_in:
            running += 1
            most = max(most, running)
            all_in.notify_all()
            all_in.wait_for(lambda: running > half, timeout=0.2)
            running -= 1

    monkeypatch.setattr(CheckedImageIO, "load_bytes", load_bytes)
    url = data_url(b"x")

    async def message() -> None:
        own = MEDIA_CONNECTOR_REGISTRY.load("http")
        await asyncio.gather(*(own.fetch_image_async(url) for _ in range(half)))

    async def request() -> None:
        share_threads()
        await asyncio.gather(message(), message())

    asyncio.run(request())
    assert most == half


def test_one_thread_for_media_is_enough(connector, monkeypatch):
    monkeypatch.setenv("VLLM_MEDIA_LOADING_THREAD_COUNT", "1")
    own, url = MEDIA_CONNECTOR_REGISTRY.load("http"), data_url(saved(SMALL, "PNG"))

    async def fetch() -> tuple[int, int]:
        async with asyncio.timeout(20):
            return (await own.fetch_image_async(url)).media.size

    assert asyncio.run(fetch()) == SMALL.size


def test_a_request_whose_client_left_takes_no_further_threads(connector, monkeypatch):
    """Its images are decoded on, for nothing can stop a thread."""
    half = envs.VLLM_MEDIA_LOADING_THREAD_COUNT // 2
    begun: list[bytes] = []
    all_begun, end = threading.Event(), threading.Event()

    def load_bytes(self, data):
        begun.append(data)
        if len(begun) == half:
            all_begun.set()
        if data == b"slow":
            end.wait(60)

    monkeypatch.setattr(CheckedImageIO, "load_bytes", load_bytes)

    async def several(data: bytes, count: int) -> None:
        urls = [data_url(data)] * count
        await asyncio.gather(*map(connector.fetch_image_async, urls))

    async def work() -> None:
        left = asyncio.create_task(several(b"slow", 2 * half))
        await asyncio.to_thread(all_begun.wait, 60)
        left.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await left
        same = asyncio.create_task(several(b"same", 1))
        other = MEDIA_CONNECTOR_REGISTRY.load("http")
        await other.fetch_image_async(data_url(b"other"))
        await asyncio.sleep(0.2)  # Time to begin, if it could
        assert b"same" not in begun
        end.set()
        await same

    try:
        asyncio.run(work())
    finally:
        end.set()
    assert begun == [b"slow"] * half + [b"other", b"same"]
