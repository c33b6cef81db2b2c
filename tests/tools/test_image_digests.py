"""Images are pinned to the digests of a registry, here one on loopback."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import image_digests
import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    *sorted(ROOT.glob("docker/Dockerfile*")),
    *sorted(ROOT.glob("examples/kubernetes/*.yaml")),
]


class Registry(ThreadingHTTPServer):
    """Asks for a token, and has a manifest for each image of `images`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server_port}"
        self.images: dict[str, bytes] = {}
        self.said: str | None = None  # instead of the digest

    def digest(self, path: str) -> str:
        return "sha256:" + hashlib.sha256(self.images[path]).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        path = self.path.removeprefix("/v2/").replace("/manifests/", ":")
        scope = f"repository:{path.partition(':')[0]}:pull"
        if self.path.startswith("/token?service=it&scope="):
            self.send(200, json.dumps({"token": "for anybody"}).encode(), {})
        elif self.headers["Authorization"] != "Bearer for anybody":
            realm = f"http://{self.server.host}/token"
            asked = f'Bearer realm="{realm}",service="it",scope="{scope}"'
            self.send(401, b"", {"WWW-Authenticate": asked})
        elif path not in self.server.images:
            self.send(404, b"", {})
        else:
            assert "image.index" in self.headers["Accept"]
            said = self.server.said or self.server.digest(path)
            headers = {"Docker-Content-Digest": said}
            self.send(200, self.server.images[path], headers)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def pin(registry: Registry, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools/image_digests.py"]
    return subprocess.run(
        [*command, f"--hub=http://{registry.host}/v1/", *arguments],
        capture_output=True,
        text=True,
    )


def test_all_images_of_this_project_are_pinned_and_refreshed(registry, tmp_path):
    """Those of `registry.example`, which stands for yours, are on loopback here."""
    files = []
    for file in FILES:
        text = file.read_text().replace("registry.example", registry.host)
        files.append(tmp_path / file.name)
        files[-1].write_text(text)
    before = {file: file.read_text().splitlines() for file in files}
    images = {
        "vllm/vllm-openai:v0.33.0": "vllm/vllm-openai:v0.33.0",
        "python:3.13-slim": "library/python:3.13-slim",
        f"{registry.host}/nemotron-vl:0.1.0": "nemotron-vl:0.1.0",
        f"{registry.host}/nemotron-vl-cpu:0.1.0": "nemotron-vl-cpu:0.1.0",
        f"{registry.host}/nemotron-vl-router:0.1.17": "nemotron-vl-router:0.1.17",
    }
    for content in (b"first", b"second"):
        registry.images = {p: content + p.encode() for p in images.values()}
        assert pin(registry, "--check", *files).returncode == 1
        done = pin(registry, *files)
        assert done.returncode == 0, done.stderr
        assert pin(registry, "--check", *files).returncode == 0
        found = set()
        for file in files:
            lines = zip(before[file], file.read_text().splitlines(), strict=True)
            for old, new in lines:
                if old != new:
                    (image,) = (name for name in images if name in old)
                    found.add(image)
                    digest = registry.digest(images[image])
                    assert new == old.replace(image, f"{image}@{digest}")
        assert found == images.keys()


def test_what_the_registry_does_not_have_is_named_and_left(registry, tmp_path):
    file = tmp_path / "Dockerfile"
    lines = "FROM --platform=x/y python:3.13-slim{} AS one\nFROM team/gone:1\nRUN a:b\n"
    file.write_text(lines.format(""))
    registry.images = {"library/python:3.13-slim": b"it"}
    done = pin(registry, file)
    assert done.returncode == 1
    assert "team/gone:1: HTTP Error 404" in done.stderr
    digest = registry.digest("library/python:3.13-slim")
    assert file.read_text() == lines.format(f"@{digest}")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hub.example/python", "library/python"),
        ("hub.example/team/app", "team/app"),
        ("team/app", "team/app"),
    ],
)
def test_the_hub_may_be_named(name, path, monkeypatch):
    asked = []

    def get(url, headers):
        asked.append(url)
        return b"", None

    monkeypatch.setattr(image_digests, "_get", get)
    image_digests.digest_of("https://index.hub.example/v1/", name, "1")
    assert asked == [f"https://index.hub.example/v2/{path}/manifests/1"]


def test_a_digest_that_is_not_that_of_the_manifest_is_refused(registry, tmp_path):
    file = tmp_path / "Dockerfile"
    shutil.copy(ROOT / "docker/Dockerfile.cpu", file)
    registry.images = {"library/python:3.13-slim": b"it"}
    registry.said = "sha256:" + "0" * 64
    done = pin(registry, file)
    assert done.returncode == 1
    assert "the registry says sha256:0000" in done.stderr
    assert file.read_text() == (ROOT / "docker/Dockerfile.cpu").read_text()
