"""Video files become the right frames within bounds, or are refused with a cause."""

import io
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.bad_clips import BAD_CLIPS, ODD_CLIPS
from support.clips import LOSSLESS, LOSSY, decoded, encoded, noise, same, whole
from support.hostile import bounded_decoders, bounded_memory
from vllm_nemotron_vl.config.nemotron_vl_video import frame_indices
from vllm_nemotron_vl.multimodal import nemotron_vl_decoding as decoding
from vllm_nemotron_vl.multimodal.nemotron_vl_containers import (
    declared_size,
    is_container,
)
from vllm_nemotron_vl.multimodal.nemotron_vl_decoding import UnreadableVideo, decode

DECODER_MEGABYTES = 2500  # frames of 16,000 x 16,000 pixels take 1,800


@settings(max_examples=300, deadline=None)
@given(frames=st.integers(1, 40_000), most=st.integers(1, 1024))
def test_frames_are_spread_as_by_numpy(frames, most):
    expected = np.linspace(0, frames - 1, min(frames, most), dtype=int)
    assert frame_indices(frames, most) == expected.tolist()


@pytest.mark.parametrize(("codec", "suffix"), LOSSLESS)
def test_lossless_files(codec, suffix):
    frames = noise(9)
    found = decode(encoded(frames, codec, suffix, fps=4), 5, whole)
    assert (found.total, found.fps, found.indices) == (9, 4, [0, 2, 4, 6, 8])
    assert same(found.frames, frames[::2])


@pytest.mark.parametrize(("codec", "suffix"), LOSSY)
def test_lossy_files(codec, suffix):
    data = encoded(noise(9), codec, suffix)
    assert is_container(data)
    assert same(decode(data, 99, whole).frames, decoded(data, suffix))


@pytest.mark.parametrize(("codec", "suffix"), LOSSLESS + LOSSY)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(codec, suffix, kept):
    data = encoded(noise(9), codec, suffix)
    assert declared_size(data) in (0, len(data))
    with pytest.raises(UnreadableVideo, match="cut off|can be decoded|none of"):
        decode(data[: int(kept * len(data))], 9, whole)


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_bad_file_is_refused(name):
    make, cause = BAD_CLIPS[name]
    data = make()
    with (
        bounded_memory(300),
        bounded_decoders(DECODER_MEGABYTES),
        pytest.raises(UnreadableVideo) as error,
    ):
        decode(data, 32, whole)
    assert cause in str(error.value).lower()


@pytest.mark.parametrize("name", ODD_CLIPS)
def test_an_odd_file_is_read(name):
    data, expected = ODD_CLIPS[name]()
    with bounded_memory(700), bounded_decoders(DECODER_MEGABYTES):
        found = decode(data, 32, lambda frame: frame[:140, :140].copy())
    assert found.frames
    if expected is not None:
        assert same(found.frames, expected)


@pytest.mark.parametrize("name", ["ffconcat", "m3u8", "MPD", "SDP"])
@pytest.mark.parametrize("head", [b"", b"\x1aE\xdf\xa3\x9f", b"RIFF    AVI LIST"])
def test_ffmpeg_gets_no_text(name, head, monkeypatch):
    started = lambda *_, **__: pytest.fail("a decoder was started")  # noqa: E731
    monkeypatch.setattr(decoding.subprocess, "Popen", started)
    with pytest.raises(UnreadableVideo):
        decode(head + BAD_CLIPS[name][0](), 3, whole)


def test_ffmpeg_would_open_the_file_that_a_text_names(tmp_path, monkeypatch):
    """The reason for the check of the first bytes."""
    (tmp_path / "secret.mkv").write_bytes(encoded(noise(3)))
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO(BAD_CLIPS["ffconcat"][0]())
    video = cv2.VideoCapture(file, cv2.CAP_FFMPEG, [])  # type: ignore[call-overload]
    assert video.isOpened() and video.read()[0]
    video.release()


def test_frames_of_another_size_midway_are_scaled_to_the_first():
    data, _ = ODD_CLIPS["another size midway"]()
    frames = decode(data, 9, whole).frames
    assert [frame.shape for frame in frames] == [(70, 90, 3)] * 3
    teal = np.array([0, 128, 128])
    assert all(abs(frame - teal).max() < 6 for frame in frames)


FILES = {kind: encoded(noise(4, 16, 12), *kind) for kind in LOSSLESS + LOSSY}


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(sorted(FILES)),
    seed=st.integers(0, 2**32 - 1),
    changes=st.integers(1, 12),
    cut=st.integers(0, 60),
)
def test_damaged_files_are_read_or_refused(kind, seed, changes, cut):
    rng = np.random.default_rng(seed)
    data = bytearray(FILES[kind])
    # Headers are damaged as often as frames.
    for end in (min(600, len(data)), len(data)):
        for place in rng.integers(0, end, changes):
            data[place] = rng.integers(256)
    try:
        found = decode(bytes(data[: len(data) - cut]), 3, lambda frame: frame[:1, :1])
    except UnreadableVideo as error:
        assert str(error).startswith("The video cannot be read: ")
    else:
        assert 1 <= len(found.frames) <= 3


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), head=st.sampled_from([*FILES.values(), b""]))
def test_any_bytes_are_a_container_or_not(data, head):
    for file in (head[:16] + data, head + data, data):
        if is_container(file):
            assert declared_size(file) >= 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x1aE\xdf\xa3\x87B\x82\x84webm" + b"\xec\x80" * 10**7,
        (8).to_bytes(4) + b"ftyp" + ((8).to_bytes(4) + b"free") * 10**6,
    ],
    ids=["elements", "boxes"],
)
def test_a_file_of_many_elements_is_not_walked(data):
    start = time.process_time()
    declared_size(data)
    assert time.process_time() - start < 1


def test_bytes_after_the_last_box_are_no_box():
    data = encoded(noise(3), "mp4v", "mp4")
    assert declared_size(data + b"trailing junk of a phone") == len(data)


def test_an_avi_of_unknown_size_is_whole():
    data = encoded(noise(3), "MJPG", "avi")
    for size in (0, 0xFFFFFFFF):
        assert declared_size(data[:4] + size.to_bytes(4, "little") + data[8:]) == 0
