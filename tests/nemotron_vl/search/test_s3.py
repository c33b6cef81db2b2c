"""An index in an object store: moto's S3 on loopback."""

import shutil
import subprocess
import time

import httpx
import pytest

from nemotron_vl.main import main
from nemotron_vl.search.store import Store
from nemotron_vl.server import free_port
from support.fake_server import fake_server
from support.search import SearchServer, find, index, write_folder

MOTO = shutil.which("moto_server")
pytestmark = [
    pytest.mark.releases,
    pytest.mark.skipif(
        not MOTO, reason="moto_server is missing: pip install 'moto[server]'"
    ),
]


@pytest.fixture
def bucket(monkeypatch):
    url = f"http://127.0.0.1:{free_port()}"
    settings = {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1"}
    for name, value in {**settings, "ENDPOINT": url, "ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    process = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", url.rpartition(":")[2]])
    try:
        for _ in range(100):
            try:
                httpx.put(f"{url}/archive").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield "s3://archive"
    finally:
        process.terminate()
        process.wait()


def test_pages_are_added_removed_and_found(bucket, tmp_path, capsys):
    place, folder = f"{bucket}/pages", tmp_path / "folder"
    write_folder(folder)
    with fake_server(SearchServer) as server:
        assert main(index(server, folder, place)) == 0
        (folder / "copy.png").unlink()
        assert main(index(server, folder, place)) == 0
        assert len(server.asked) == 6 and len(Store.open(place)) == 6
        capsys.readouterr()
        assert main(find(server, "blue", place, "--limit", "1")) == 0
    assert "report.pdf p. 3" in capsys.readouterr().out
