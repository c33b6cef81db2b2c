"""Which errors in the loading of an image are the client's, and what is logged."""

import io

import pytest
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.image import ImageMediaIO

from vllm_nemotron_vl.renderers import nemotron_vl as renderer

SECRET = "https://user:pass@bucket.example/scan.png?X-Signature=abc123"


@pytest.fixture
def load(monkeypatch):
    """Load an image through vLLM while Pillow raises an error."""

    def run(error: Exception) -> None:
        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(Image, "open", fail)
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, "PNG")
        with renderer._media_errors_are_the_clients("image"):
            ImageMediaIO().load_bytes(file.getvalue())

    return run


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("cannot schedule new futures after shutdown"),
        RuntimeError("cannot schedule new futures after interpreter shutdown"),
    ],
    ids=str,
)
def test_errors_of_the_server_stay_its_own(load, error):
    """With status 400, a client would not try again."""
    with pytest.raises(type(error)) as raised:
        load(error)
    assert raised.value is error


def test_errors_of_the_file_are_the_clients(load):
    with pytest.raises(VLLMValidationError, match="cannot be read: .*broken data"):
        load(OSError("broken data"))


def test_no_secret_is_logged(load, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(
        renderer.logger, "info", lambda text, *values: lines.append(text % values)
    )
    with pytest.raises(VLLMValidationError):
        load(OSError(f"404, url='{SECRET}' of the scan"))
    (line,) = lines
    assert "https://bucket.example/..." in line and "of the scan" in line
    assert not any(word in line for word in ("user", "pass", "Signature", "abc123"))
