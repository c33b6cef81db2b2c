# SPDX-License-Identifier: Apache-2.0
"""Decoding of video files, frame by frame, with bounds, in a process of its own.

OpenCV's copy of FFmpeg decodes the file. vLLM's loader uses it, too. Unlike vLLM's
loader this one opens containers only, counts the frames, never holds more than one
frame of full size, and outlives FFmpeg: files exist that end its process. Nothing here
imports PyTorch or vLLM, which takes seconds.
"""

import contextlib
import fcntl
import functools
import json
import logging
import math
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ..config.nemotron_vl_video import (
    MOST_BYTES,
    MOST_FRAME_PIXELS,
    MOST_SECONDS,
    MOST_WALKED_FRAMES,
    frame_indices,
)
from . import nemotron_vl_confinement, nemotron_vl_decoder
from .nemotron_vl_containers import CONTAINERS, declared_size, is_container

logger = logging.getLogger("vllm.multimodal.nemotron_vl_decoding")

DECODER = Path(nemotron_vl_decoder.__file__)
_VARIABLES = {"OPENCV_LOG_LEVEL": "OFF", "OPENBLAS_NUM_THREADS": "1"}
# How often it is seen whether the client has left, in seconds.
_LOOK = 0.25
# A larger pipe than usual (64 KiB) moves large frames faster.
_PIPE_BYTES = 1 << 20
# A file does not cause these. The kernel sends SIGKILL when memory runs out.
_SIGNALS_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# An array of RGB pixels, uint8 of shape (height, width, 3), to something smaller.
Shrink = Callable[[np.ndarray], Any]


class UnreadableVideo(ValueError):
    """A video file that is none, is damaged, or exceeds a limit."""


class DecoderUnavailable(RuntimeError):
    """Videos cannot be decoded now, or not at all; no file is to blame."""


class Decoded(NamedTuple):
    """Frames of a video file.

    Args:
        frames: What `Shrink` made of each taken frame.
        indices: Their places among all frames of the file.
        total: Frames of the file.
        fps: Frames a second by the header; 0 if it does not say it.
    """

    frames: list[Any]
    indices: list[int]
    total: int
    fps: float


def content_of(file: Path) -> bytes:
    """Content of a file for `decode`, of which a byte too much is enough."""
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES + 1)


def decode(
    data: bytes,
    num_frames: int,
    shrink: Shrink,
    most_pixels: int = MOST_FRAME_PIXELS,
    left: threading.Event | None = None,
) -> Decoded:
    """Take evenly spread frames of a video file.

    All frames are decoded in their order, because seeking is inexact. If the header
    does not give the right number of frames, the file is decoded a second time.

    Args:
        data: The file.
        num_frames: Most frames to take.
        shrink: Called with each taken frame, rotated as it is displayed.
        most_pixels: Limit of a frame.
        left: Set once nobody waits for the frames any more. The process then ends.

    Raises:
        UnreadableVideo: The file is no container of video, is cut off, has no
            frame that can be decoded, or exceeds a limit of
            ``config/nemotron_vl_video.py``.
        DecoderUnavailable: OpenCV is missing; or the process cannot be started,
            lacks something that is not the file's, or was ended from outside; or
            `left` was set.
    """
    _check_file(data)
    with _decoder(data, left or threading.Event()) as decoder:
        promised, fps, width, height = decoder.header()
        _check_pixels(width, height, most_pixels)
        promised = promised if 0 < promised <= MOST_WALKED_FRAMES else 0
        wanted = frame_indices(promised, num_frames) if promised else []
        frames, total = decoder.walk(wanted, shrink, most_pixels)
        if not total:
            raise _unreadable("it has no frame that can be decoded")
        if total > MOST_WALKED_FRAMES:
            raise _unreadable(
                f"it has more than {MOST_WALKED_FRAMES} frames; send a part of it, or "
                "fewer frames a second"
            )
        if total != promised:
            logger.info("A video has %d frames; its header says %d.", total, promised)
            wanted = frame_indices(total, num_frames)
            frames, _ = decoder.walk(wanted, shrink, most_pixels)
    if len(frames) < len(wanted):
        lost = next(index for index in wanted if index not in frames)
        raise _unreadable(f"frame {lost} of {total} cannot be decoded")
    return Decoded([frames[index] for index in wanted], wanted, total, fps)


def _check_file(data: bytes) -> None:
    if not data:
        raise _unreadable("it is empty")
    if not is_container(data):
        raise _unreadable(f"it is none of {', '.join(CONTAINERS)} by its first bytes")
    if len(data) > MOST_BYTES:
        raise _unreadable(f"it has {len(data)} bytes; at most {MOST_BYTES} are allowed")
    if (size := declared_size(data)) > len(data):
        raise _unreadable(f"it is cut off after {len(data)} of {size} bytes")


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise _unreadable(
            f"its frames are {width}x{height} pixels; at most {most} pixels are allowed"
        )


def _unreadable(reason: str) -> UnreadableVideo:
    return UnreadableVideo(f"The video cannot be read: {reason}.")


class _Decoder:
    """The other end of ``nemotron_vl_decoder.py``."""

    def __init__(self, process: subprocess.Popen, left: threading.Event) -> None:
        assert process.stdin
        self._left = left
        self._process = process
        self._input = process.stdin
        self._output = cast(BufferedReader, process.stdout)
        self._end = time.monotonic() + MOST_SECONDS
        self._clock = threading.Lock()  # held while the time does not count
        self._done = threading.Event()
        self._timed_out = False

    def send(self, *parts: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # `_answer` says why
            for part in parts:
                self._input.write(part)
            self._input.flush()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End the process once nobody waits, or after `MOST_SECONDS`.

        The time of `shrink` does not count.
        """
        try:
            threading.Thread(target=self._watch, daemon=True).start()
        except RuntimeError as error:
            raise DecoderUnavailable(f"The decoder of videos: {error}.") from error
        try:
            yield
        finally:
            self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(min(_LOOK, max(0, self._end - time.monotonic()))):
            if self._left.is_set():
                self._process.kill()
                return
            with self._clock:
                if time.monotonic() < self._end:
                    continue
                self._timed_out = True
                self._process.kill()
                return

    def header(self) -> tuple[int, float, int, int]:
        """Frames, frames a second, width and height; 0 for what it does not say."""
        _note_network(self._answer()["offline"])
        values = [v if math.isfinite(v) else 0.0 for v in self._answer()["header"]]
        frames, fps, width, height = values
        return int(frames), fps, int(width), int(height)

    def walk(
        self, wanted: list[int], shrink: Shrink, most_pixels: int
    ) -> tuple[dict[int, Any], int]:
        """The wanted frames, shrunk, and the number of all frames."""
        command = {"wanted": wanted, "most": MOST_WALKED_FRAMES}
        self.send(json.dumps(command).encode(), b"\n")
        frames = {}
        while "total" not in (answer := self._answer()):
            height, width, channels = answer["shape"]
            _check_pixels(width, height, most_pixels)
            pixels = np.empty((height, width, channels), np.uint8)
            if self._output.readinto(pixels.data.cast("B")) < pixels.size:
                raise self._ended()
            with self._clock:
                start = time.monotonic()
                frames[answer["frame"]] = shrink(pixels)
                self._end += time.monotonic() - start
        return frames, answer["total"]

    def _answer(self) -> dict:
        line = self._output.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        answer = json.loads(line)
        if "closed" in answer:
            raise _unreadable("it has no video that can be decoded")
        if "damaged" in answer:
            raise _unreadable(f"{answer['damaged']} is damaged")
        return answer

    def _ended(self) -> Exception:
        """Why the process has ended."""
        status = self._process.wait()
        if self._left.is_set():
            return _nobody_waits()
        if self._timed_out or status == -signal.SIGXCPU:
            return _unreadable(
                f"decoding took more than {MOST_SECONDS:g} seconds; send a shorter or "
                "smaller one"
            )
        if status == nemotron_vl_decoder.NO_THREADS:
            return DecoderUnavailable("The decoder of videos cannot start threads.")
        if status == nemotron_vl_decoder.NO_OPENCV:
            return DecoderUnavailable(
                "Videos cannot be decoded: OpenCV (cv2) cannot be imported; vLLM "
                "brings it."
            )
        if -status in _SIGNALS_FROM_OUTSIDE:
            return DecoderUnavailable(
                f"The decoder of a video was ended from outside (signal {-status}); "
                "the machine may be out of memory."
            )
        if status < 0:
            return _unreadable(
                f"it is damaged, and ended its decoder (signal {-status})"
            )
        return DecoderUnavailable(f"The decoder of videos failed (status {status}).")


def _nobody_waits() -> DecoderUnavailable:
    return DecoderUnavailable("The client of a video has left.")


@functools.cache
def _note_network(offline: bool) -> None:
    """Say once where the kernel does not allow the namespace."""
    if not offline:
        logger.warning(
            "The decoder of videos shares the server's network namespace, because this "
            "system forbids another one (unshare). It cannot open sockets."
        )


@contextlib.contextmanager
def _decoder(data: bytes, left: threading.Event) -> Iterator[_Decoder]:
    """Run a decoder for at most `MOST_SECONDS`."""
    if left.is_set():  # while the file waited for a thread
        raise _nobody_waits()
    process = _start()
    try:
        decoder = _Decoder(process, left)
        with decoder.watched():
            decoder.send(len(data).to_bytes(8), data)
            yield decoder
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        process.wait()


def _start() -> subprocess.Popen:
    try:
        process = subprocess.Popen(
            nemotron_vl_confinement.command(DECODER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=nemotron_vl_confinement.environment() | _VARIABLES,
        )
    except OSError as error:  # too many open files or processes, no memory
        raise DecoderUnavailable(
            f"The decoder of videos cannot be started: {error.strerror}."
        ) from error
    with contextlib.suppress(OSError):  # the user has too many large pipes
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # type: ignore
    return process
