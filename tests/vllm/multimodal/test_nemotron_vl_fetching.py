"""The connector fetches without cookies, and from no private network by itself."""

import asyncio
import http.server
import threading

import aiohttp
import pytest
from PIL import Image
from vllm.connections import HTTPConnection
from vllm.exceptions import VLLMValidationError

from support.chat import saved
from vllm_nemotron_vl.multimodal import nemotron_vl_fetching as fetching
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import PublicConnector

# The latter where no renderer reports the error.
NOT_FETCHED = (aiohttp.ClientError, VLLMValidationError)
IMAGE = saved(Image.new("RGB", (3, 5)), "PNG")


class Pages(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []
    cookies: list[str | None] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.cookies.append(self.headers["Cookie"])
        self.send_response(200)
        self.send_header("Set-Cookie", "session=1; Path=/")
        self.end_headers()
        self.wfile.write(IMAGE)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def port():
    Pages.asked.clear()
    Pages.cookies.clear()
    pages = http.server.ThreadingHTTPServer(("", 0), Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    yield pages.server_address[1]
    pages.shutdown()


@pytest.fixture(autouse=True)
def own_sessions(monkeypatch):
    """A session belongs to an event loop, of which each test has its own."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, public in {"_TO_ANY": False, "_TO_PUBLIC": True}.items():
        monkeypatch.setattr(fetching, name, fetching._Connection(public_only=public))


def fetch_asynchronously(*urls: str, **options):
    async def work():
        connector = PublicConnector(**options)
        try:
            return [(await connector.fetch_image_async(url)).media.size for url in urls]
        finally:
            await (await connector.connection.get_async_client()).close()

    return asyncio.run(work())


def fetch_as_llm_does(*urls: str, **options):
    connector = PublicConnector(**options)
    return [connector.fetch_image(url).media.size for url in urls]


@pytest.fixture(params=[fetch_asynchronously, fetch_as_llm_does])
def fetch(request):
    return request.param


# Names that resolve to this machine, as a host of an attacker may from one moment to
# the next, and ways to write its address
HOSTS = ["localhost", "127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]"]


@pytest.mark.parametrize("host", HOSTS)
def test_private_addresses_are_not_asked(fetch, port, host):
    with pytest.raises(NOT_FETCHED):
        fetch(f"http://{host}:{port}/a.png")
    assert not Pages.asked


@pytest.mark.parametrize(
    "proxies",
    [
        {"no_proxy": "example.org"},
        {"no_proxy": "*"},
        {"https_proxy": "http://127.0.0.1:9"},
        {"http_proxy": "http://127.0.0.1:9", "no_proxy": "localhost"},
    ],
    ids=str,
)
def test_private_addresses_without_a_proxy_of_theirs_are_not_asked(
    fetch, port, proxies, monkeypatch
):
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NOT_FETCHED):
        fetch(f"http://localhost:{port}/a.png")
    assert not Pages.asked


def test_the_operator_may_name_a_private_host(fetch, port):
    url = f"http://localhost:{port}/a.png"
    assert fetch(url, allowed_media_domains=["localhost"]) == [(3, 5)]
    with pytest.raises((ValueError, VLLMValidationError), match="allowed domains"):
        fetch(f"http://127.0.0.1:{port}/b.png", allowed_media_domains=["localhost"])
    assert Pages.asked == ["/a.png"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_decides_by_itself(fetch, port, host, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{host}:{port}")
    monkeypatch.setenv("no_proxy", "cluster.local")
    assert fetch("http://images.example.org/a.png") == [(3, 5)]
    assert Pages.asked == ["http://images.example.org/a.png"]


def test_no_cookie_is_sent(fetch, port):
    urls = [f"http://localhost:{port}/{name}.png" for name in "ab"]
    fetch(*urls, allowed_media_domains=["localhost"])
    assert Pages.cookies == [None, None]


def test_images_are_fetched_where_a_loop_runs(port):
    """As in a notebook."""
    url = f"http://localhost:{port}/a.png"

    async def work():
        return fetch_as_llm_does(url, allowed_media_domains=["localhost"])

    assert asyncio.run(work()) == [(3, 5)]


def test_vllm_itself_keeps_cookies():
    """The reason for the connector; once this fails, drop that part of it."""

    async def kind():
        client = await HTTPConnection().get_async_client()
        await client.close()
        return type(client.cookie_jar)

    assert asyncio.run(kind()) is aiohttp.CookieJar
