"""A server of OpenAI's chat API in the test process, without a model."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple, TypeVar

from PIL import Image

BREAK = 0  # in `failures`: close the connection without an answer


def image_of(request: dict) -> Image.Image | None:
    """The image of a chat request."""
    parts = request["messages"][-1]["content"]
    if isinstance(parts, str):
        return None
    data = parts[0]["image_url"]["url"].partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def size_of_image(request: dict) -> str:
    image = image_of(request)
    return "yes" if image is None else f"{image.width}x{image.height}"


class Sent(NamedTuple):
    """An answer as it is sent, whatever it holds."""

    body: bytes | Iterable[bytes]
    status: int = 200
    headers: dict[str, str] = {}


class FakeServer:
    """What the server does, and what it has seen."""

    def __init__(self) -> None:
        # Text of the answer to a request, or a status and a message.
        self.answer: Callable[[dict], str | tuple[int, str]] = size_of_image
        # Sent instead, unless it is `None`; the request is `None` for the models.
        self.sent: Callable[[dict | None], Sent | None] = lambda request: None
        # Statuses that the next requests with a page get first.
        self.failures: list[int] = []
        self.busy = 0  # requests of any kind that get status 503 first
        self.delay = 0.0  # seconds that an answer takes
        self.finish_reason = "stop"
        self.models = [{"id": "fake", "object": "model", "created": 0}]
        self.requests: list[dict] = []  # those with a page
        self.trials: list[dict] = []  # those without
        self.most_at_once = 0
        self.url = ""
        self._at_once = 0
        self._lock = threading.Lock()

    def respond(self, request: dict) -> tuple[int, dict]:
        trial = isinstance(request["messages"][-1]["content"], str)
        with self._lock:
            (self.trials if trial else self.requests).append(request)
            if self.busy:
                self.busy -= 1
                return 503, {"error": {"message": "busy"}}
            if not trial and self.failures:
                return self.failures.pop(0), {"error": {"message": "a failure"}}
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay)
            answer = self.answer(request)
        finally:
            with self._lock:
                self._at_once -= 1
        if isinstance(answer, tuple):
            return answer[0], {"error": {"message": answer[1]}}
        choice = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "message": {"role": "assistant", "content": answer},
        }
        usage = {"prompt_tokens": 3330, "completion_tokens": 7, "total_tokens": 3337}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "fake"}
        return 200, head | {"choices": [choice], "usage": usage}


_Fake = TypeVar("_Fake", bound=FakeServer)


@contextlib.contextmanager
def fake_server(kind: type[_Fake] = FakeServer) -> Iterator[_Fake]:  # type: ignore[assignment]
    """Run a server on loopback while the block runs."""
    fake = kind()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if sent := fake.sent(None):
                self._send_as_it_is(sent)
            else:
                self._send(200, {"object": "list", "data": fake.models})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            request = json.loads(self.rfile.read(length))
            status, body = fake.respond(request)
            if sent := fake.sent(request):
                self._send_as_it_is(sent)
            elif status == BREAK:
                self.close_connection = True
            else:
                self._send(status, body)

        def _send(self, status: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "10")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that was killed
                self.wfile.write(data)

        def _send_as_it_is(self, sent: Sent) -> None:
            self.close_connection = True
            self.send_response(sent.status)
            for name, value in sent.headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for part in [sent.body] if isinstance(sent.body, bytes) else sent.body:
                    self.wfile.write(part)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # clients that were killed

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
