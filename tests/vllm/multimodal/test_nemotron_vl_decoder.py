"""The process that decodes videos: its rights, its limits, and who ended it."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.bad_clips import BAD_CLIPS, ending_ffmpeg, slow
from support.clips import encoded, noise, same, whole
from support.decoders import check_rights, decoders, rights
from vllm_nemotron_vl.multimodal import nemotron_vl_decoding as decoding
from vllm_nemotron_vl.multimodal.nemotron_vl_decoding import (
    DecoderUnavailable,
    UnreadableVideo,
    decode,
)


def test_the_decoder_cannot_open_files(tmp_path, monkeypatch):
    """Not even if FFmpeg gets a text that names one."""
    (tmp_path / "secret.mkv").write_bytes(encoded(noise(3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "_check_file", lambda data: None)
    with pytest.raises(UnreadableVideo, match="no video that can be decoded"):
        decode(BAD_CLIPS["ffconcat"][0](), 3, whole)


def children() -> list[str]:
    """Earlier tests of this process may have left some: a resource tracker, say."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_file_that_ends_ffmpeg_is_refused_and_leaves_nothing():
    running, before = children(), {*os.listdir("/proc/self/fd")}
    with pytest.raises(UnreadableVideo, match="ended its decoder .signal 11"):
        decode(ending_ffmpeg(), 3, whole)
    assert same(decode(encoded(noise(2)), 3, whole).frames, noise(2))
    assert {*os.listdir("/proc/self/fd")} == before
    assert children() == running


def test_an_error_of_the_caller_ends_the_decoder():
    def shrink(frame):
        raise MemoryError

    running = children()
    with pytest.raises(MemoryError):
        decode(encoded(noise(50)), 50, shrink)
    assert children() == running


def _without_opencv(monkeypatch, folder):
    (folder / "cv2.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def _killed(monkeypatch, folder):
    """As by the kernel when memory runs out."""
    (folder / "cv2.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def _without_files(monkeypatch, folder):
    def fail(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(decoding.subprocess, "Popen", fail)


def _without_threads(monkeypatch, folder):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)


@pytest.mark.parametrize(
    ("happens", "cause"),
    [
        (_without_opencv, "OpenCV"),
        (_killed, "signal 9"),
        (_without_files, "Too many open files"),
        (_without_threads, "can't start new thread"),
    ],
)
def test_the_server_is_to_blame(happens, cause, monkeypatch, tmp_path):
    """A client would not try again after a message about its video."""
    happens(monkeypatch, tmp_path)
    with pytest.raises(DecoderUnavailable, match=cause):
        decode(encoded(noise(2)), 3, whole)


def test_what_a_library_prints_is_no_answer(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text(
        "import os, sys\n"
        "os.write(1, b'printed\\n')\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['cv2']\n"
        "import cv2"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert same(decode(encoded(noise(2)), 3, whole).frames, noise(2))


def test_the_walk_is_bounded(monkeypatch):
    data = encoded(noise(9))
    monkeypatch.setattr(decoding, "MOST_WALKED_FRAMES", 8)
    with pytest.raises(UnreadableVideo, match="more than 8 frames"):
        decode(data, 3, whole)
    monkeypatch.setattr(decoding, "MOST_WALKED_FRAMES", 9)
    decode(data, 3, whole)
    monkeypatch.setattr(decoding, "MOST_SECONDS", -1.0)
    with pytest.raises(UnreadableVideo, match="took more than"):
        decode(data, 3, whole)
    monkeypatch.setattr(decoding, "MOST_SECONDS", 60.0)
    monkeypatch.setattr(decoding, "MOST_BYTES", len(data))
    decode(data, 3, whole)
    monkeypatch.setattr(decoding, "MOST_BYTES", len(data) - 1)
    with pytest.raises(UnreadableVideo, match=f"at most {len(data) - 1}"):
        decode(data, 3, whole)
    monkeypatch.undo()
    with pytest.raises(UnreadableVideo, match="90x70 pixels; at most 6299"):
        decode(data, 3, whole, 6299)


def test_the_time_of_shrinking_does_not_count(monkeypatch):
    """It depends on the recipe, and is that of an image of the same size."""

    def slow(frame):
        time.sleep(2)

    monkeypatch.setattr(decoding, "MOST_SECONDS", 5.0)
    assert decode(encoded(noise(4)), 4, slow).total == 4


def _decoder_that(does: str, monkeypatch, folder) -> None:
    """Replace the decoder by one that writes a header and a frame, then does this."""
    script = folder / "decoder.py"
    script.write_text(
        "import os, sys, time\n"
        'print(\'{"offline": true}\\n{"header": [2, 1, 1, 1]}\', flush=True)\n'
        "print('{\"frame\": 0, \"shape\": [1, 1, 3]}\\nRGB', end='', flush=True)\n"
        + does
    )
    monkeypatch.setattr(decoding, "DECODER", script)


def test_the_time_after_shrinking_counts(monkeypatch, tmp_path):
    _decoder_that("time.sleep(30)", monkeypatch, tmp_path)
    monkeypatch.setattr(decoding, "MOST_SECONDS", 1.0)
    with pytest.raises(UnreadableVideo, match="took more than"):
        decode(encoded(noise(2)), 2, lambda frame: time.sleep(0.5))


@pytest.mark.parametrize(
    ("ends", "kind", "cause"),
    [
        ("os.kill(os.getpid(), 24)", UnreadableVideo, "took more than"),  # SIGXCPU
        ("os.kill(os.getpid(), 11)", UnreadableVideo, "ended its decoder"),
        ("os.kill(os.getpid(), 9)", DecoderUnavailable, "from outside"),
        ("sys.exit(1)", DecoderUnavailable, "status 1"),
        ("sys.exit(4)", DecoderUnavailable, "threads"),
    ],
)
def test_who_is_to_blame_for_the_end_of_the_decoder(
    ends, kind, cause, monkeypatch, tmp_path
):
    _decoder_that(ends, monkeypatch, tmp_path)
    with pytest.raises(kind, match=cause):
        decode(encoded(noise(2)), 2, whole)


def test_the_decoder_has_no_rights(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    found: dict[str, str] = {}

    def shrink(frame):
        found.update(rights(*decoders()))

    decode(encoded(noise(1)), 1, shrink)
    check_rights(found, "OPENCV_LOG_LEVEL", "OPENBLAS_NUM_THREADS")


def test_a_shared_network_is_logged_once(monkeypatch, caplog):
    decoding._note_network.cache_clear()
    for _ in range(2):
        decoding._note_network(False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    decoding._note_network.cache_clear()


def test_the_decoder_ends_when_nobody_waits(monkeypatch, tmp_path):
    _decoder_that("time.sleep(30)", monkeypatch, tmp_path)
    left, running = threading.Event(), children()
    with pytest.raises(DecoderUnavailable, match="has left"):
        decode(encoded(noise(2)), 2, lambda frame: left.set(), left=left)
    assert children() == running
    started = lambda *_, **__: pytest.fail("a decoder was started")  # noqa: E731
    monkeypatch.setattr(decoding.subprocess, "Popen", started)
    with pytest.raises(DecoderUnavailable, match="has left"):
        decode(encoded(noise(2)), 2, whole, left=left)


def test_the_decoder_ends_with_its_server(tmp_path):
    """Also while it decodes frames that nobody wants."""
    (tmp_path / "slow.avi").write_bytes(slow())
    code = (
        "import pathlib, sys\n"
        "from vllm_nemotron_vl.multimodal.nemotron_vl_decoding import decode\n"
        "decode(pathlib.Path(sys.argv[1]).read_bytes(), 1, lambda frame: print('!'))"
    )
    command = [sys.executable, "-uc", code, str(tmp_path / "slow.avi")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline()
        (decoder,) = decoders(server.pid)
        server.kill()
    end = time.monotonic() + 5  # of the 20 s that it would take
    while Path("/proc", decoder, "cmdline").exists() and time.monotonic() < end:
        time.sleep(0.1)
    state = Path("/proc", decoder, "stat")  # a zombie if nobody waits for orphans
    assert not state.exists() or ") Z " in state.read_text()
