# SPDX-License-Identifier: Apache-2.0
"""Decoding of video files, frame by frame and with bounds.

OpenCV's copy of FFmpeg decodes the file. vLLM's loader uses it, too. Unlike vLLM's
loader this one opens containers only, counts the frames, and never holds more than one
frame of full size. Nothing here imports PyTorch or vLLM, which takes seconds.
"""

import io
import logging
import math
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from ..config.nemotron_vl_video import (
    MOST_BYTES,
    MOST_FRAME_PIXELS,
    MOST_SECONDS,
    MOST_WALKED_FRAMES,
    frame_indices,
)
from .nemotron_vl_containers import CONTAINERS, declared_size, is_container

logger = logging.getLogger("vllm.multimodal.nemotron_vl_decoding")

# FFmpeg holds a few frames for each thread.
_THREADS = 2

# An array of RGB pixels, uint8 of shape (height, width, 3), to something smaller.
Shrink = Callable[[np.ndarray], Any]


class UnreadableVideo(ValueError):
    """A video file that is none, is damaged, or exceeds a limit."""


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


def decode(
    data: bytes,
    num_frames: int,
    shrink: Shrink,
    most_pixels: int = MOST_FRAME_PIXELS,
) -> Decoded:
    """Take evenly spread frames of a video file.

    All frames are decoded in their order, because seeking is inexact. If the header
    does not give the right number of frames, the file is decoded a second time.

    Args:
        data: The file.
        num_frames: Most frames to take.
        shrink: Called with each taken frame, rotated as it is displayed.
        most_pixels: Of a frame.

    Raises:
        UnreadableVideo: The file is no container of video, is cut off, has no
            frame that can be decoded, or exceeds a limit of
            ``config/nemotron_vl_video.py``.
    """
    _check_file(data)
    deadline = time.monotonic() + MOST_SECONDS
    promised, fps = _header(data, most_pixels)
    promised = promised if 0 < promised <= MOST_WALKED_FRAMES else 0
    wanted = frame_indices(promised, num_frames) if promised else []
    frames, total = _walk(data, wanted, shrink, most_pixels, deadline)
    if not total:
        raise _unreadable("it has no frame that can be decoded")
    if total != promised:
        logger.info("A video has %d frames; its header says %d.", total, promised)
        wanted = frame_indices(total, num_frames)
        frames, _ = _walk(data, wanted, shrink, most_pixels, deadline)
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


def _unreadable(reason: str) -> UnreadableVideo:
    return UnreadableVideo(f"The video cannot be read: {reason}.")


def _open(file: io.BytesIO, most_pixels: int) -> Any:
    import cv2

    # OpenCV does not keep the file alive; the caller must.
    options = {
        cv2.CAP_PROP_N_THREADS: _THREADS,
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: int(MOST_SECONDS * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: int(MOST_SECONDS * 1000),
    }
    flat = [number for option in options.items() for number in option]
    video = cv2.VideoCapture(file, cv2.CAP_FFMPEG, flat)  # type: ignore[call-overload]
    if not video.isOpened():
        raise _unreadable("it has no video that can be decoded")
    _check_pixels(
        int(video.get(cv2.CAP_PROP_FRAME_WIDTH)),
        int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        most_pixels,
    )
    return video


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise _unreadable(
            f"its frames are {width}x{height} pixels; at most {most} pixels are allowed"
        )


def _header(data: bytes, most_pixels: int) -> tuple[int, float]:
    """Frames and frames a second as the header says; 0 for what it does not say."""
    import cv2

    file = io.BytesIO(data)
    video = _open(file, most_pixels)
    frames, fps = (
        video.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)
    )
    video.release()
    return (
        int(frames) if math.isfinite(frames) else 0,
        fps if math.isfinite(fps) else 0.0,
    )


def _walk(
    data: bytes,
    wanted: Collection[int],
    shrink: Shrink,
    most_pixels: int,
    deadline: float,
) -> tuple[dict[int, Any], int]:
    """Decode all frames; give the wanted ones, shrunk, and the number of all."""
    import cv2

    wanted, frames, total = set(wanted), {}, 0
    file = io.BytesIO(data)
    video = _open(file, most_pixels)
    try:
        while video.grab():
            if total >= MOST_WALKED_FRAMES:
                raise _unreadable(
                    f"it has more than {MOST_WALKED_FRAMES} frames; send a part of it, "
                    "or fewer frames a second"
                )
            if time.monotonic() > deadline:
                raise _unreadable(
                    f"decoding took more than {MOST_SECONDS:g} seconds, at frame "
                    f"{total}; send a shorter or smaller one"
                )
            if total in wanted:
                decoded, frame = video.retrieve()
                if decoded and frame is not None and frame.size:
                    _check_pixels(frame.shape[1], frame.shape[0], most_pixels)
                    frames[total] = shrink(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            total += 1
    except cv2.error as error:
        raise _unreadable(f"frame {total} is damaged ({error.err})") from error
    finally:
        video.release()
    return frames, total
