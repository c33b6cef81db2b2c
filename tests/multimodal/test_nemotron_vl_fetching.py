"""The connector fetches without cookies, and from no private network by itself."""

import asyncio
import http.server
import threading

import aiohttp
import pytest
from PIL import Image
from vllm.connections import HTTPConnection

from support.chat import saved
from vllm_nemotron_vl.multimodal import nemotron_vl_fetching as fetching
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import PublicConnector

PICTURE = saved(Image.new("RGB", (3, 5)), "PNG")


class Pages(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def port():
    Pages.asked.clear()
    pages = http.server.ThreadingHTTPServer(("", 0), Pages)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    yield pages.server_address[1]
    pages.shutdown()


@pytest.fixture(autouse=True)
def own_sessions(monkeypatch):
    """A session belongs to an event loop, of which each test has its own."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, public in {"_TO_ANY": False, "_TO_PUBLIC": True}.items():
        monkeypatch.setattr(fetching, name, fetching._Connection(public_only=public))


def fetch(url: str, **options):
    async def work():
        connector = PublicConnector(**options)
        try:
            return (await connector.fetch_image_async(url)).media.size
        finally:
            await (await connector.connection.get_async_client()).close()

    return asyncio.run(work())


# Names that resolve to this machine, as a host of an attacker may from one moment to
# the next, and ways to write its address
HOSTS = ["localhost", "127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]"]


@pytest.mark.parametrize("host", HOSTS)
def test_private_addresses_are_not_asked(port, host):
    with pytest.raises(aiohttp.ClientError):
        fetch(f"http://{host}:{port}/a.png")
    assert not Pages.asked


def test_the_operator_may_name_a_private_host(port):
    url = f"http://localhost:{port}/a.png"
    assert fetch(url, allowed_media_domains=["localhost"]) == (3, 5)
    with pytest.raises(ValueError, match="allowed domains"):
        fetch(f"http://127.0.0.1:{port}/b.png", allowed_media_domains=["localhost"])
    assert Pages.asked == ["/a.png"]


def test_a_proxy_decides_by_itself(port, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert fetch("http://pictures.example.org/a.png") == (3, 5)
    assert Pages.asked == ["http://pictures.example.org/a.png"]


def test_vllm_itself_keeps_cookies():
    """The reason for the connector; once this fails, drop that part of it."""

    async def kind():
        client = await HTTPConnection().get_async_client()
        await client.close()
        return type(client.cookie_jar)

    assert asyncio.run(kind()) is aiohttp.CookieJar
