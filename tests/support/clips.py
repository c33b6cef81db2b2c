"""Short videos: frames that differ, and the files that OpenCV writes of them."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from nemotron_vl.images.drawn import draw_text
from support.chat import data_url

# The switch: as an option of engines, and of servers.
VIDEO = {"architectures": ["Llama_Nemotron_Nano_VL_Video"]}
VIDEO_SWITCH = ["--hf-overrides", json.dumps(VIDEO)]
# Codecs that OpenCV writes; the first two lose nothing.
LOSSLESS = [("FFV1", "mkv"), ("HFYU", "avi")]
LOSSY = [("mp4v", "mp4"), ("VP80", "webm"), ("VP90", "webm"), ("MJPG", "avi")]


def noise(count: int, width: int = 90, height: int = 70) -> list[Image.Image]:
    rng = np.random.default_rng(count)
    shape = count, height, width, 3
    return [Image.fromarray(f) for f in rng.integers(0, 256, shape, np.uint8)]


def numbers(*texts: str, size: tuple[int, int] = (128, 64)) -> list[Image.Image]:
    """Frames with a text on each."""
    return [draw_text(text).convert("RGB").resize(size) for text in texts]


def encoded(
    frames: Sequence[Image.Image],
    codec: str = "FFV1",
    suffix: str = "mkv",
    fps: float = 10,
) -> bytes:
    """A video file of frames of one size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{suffix}")
        code = cv2.VideoWriter.fourcc(*codec)
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, frames[0].size)
        assert writer.isOpened(), (codec, suffix)
        converted = {  # each once, where one is repeated
            id(frame): cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2BGR)
            for frame in {id(frame): frame for frame in frames}.values()
        }
        for frame in frames:
            writer.write(converted[id(frame)])
        writer.release()
        return path.read_bytes()


def decoded(data: bytes, suffix: str) -> list[Image.Image]:
    """All frames of a file, read in the plainest way."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{suffix}")
        path.write_bytes(data)
        reader, frames = cv2.VideoCapture(str(path)), []
        while (read := reader.read())[0]:
            frames.append(Image.fromarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)))
        return frames


def url_part(url: str) -> dict:
    """Part of a chat message."""
    return {"type": "video_url", "video_url": {"url": url}}


def video_part(data: bytes, kind: str = "video/x-matroska") -> dict:
    return url_part(data_url(data, kind))


def whole(frame: np.ndarray) -> np.ndarray:
    """For `decode`: keep all pixels of a frame."""
    return frame.copy()


def same(frames, expected) -> bool:
    return len(frames) == len(expected) and all(map(np.array_equal, frames, expected))
