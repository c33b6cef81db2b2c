# SPDX-License-Identifier: Apache-2.0
"""Reading of videos: what a user passes becomes a `Video`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, VideoProcessorItems

from ..config.nemotron_vl_video import LOADER, frame_indices
from .nemotron_vl import NemotronVLDataParser, to_image
from .nemotron_vl_decoding import content_of

# vLLM's loaders return the frames and a dictionary about them.
Loaded = tuple[np.ndarray, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Video:
    """The taken frames of a video.

    Args:
        frames: RGB images; or, if `resize` is set, tiles as uint8 of shape ``(frames,
            3, size, size)``.
        identity: What vLLM's caches compare two videos by.
        resize: The recipe that resized the frames to tiles.
        reuse: Whether equal frames may be encoded once.
    """

    frames: Sequence[Image.Image] | np.ndarray
    identity: object
    resize: str | None = None
    reuse: bool = True


class VideoItems(VideoProcessorItems):
    """Videos, of which vLLM hashes the identity instead of the frames."""

    def get_item_for_hash(self, index: int) -> Any:
        video: Any = self.data[index]
        return video.identity if isinstance(video, Video) else video


class NemotronVLVideoDataParser(NemotronVLDataParser):
    """Reads what users pass as videos, before vLLM hashes and caches it.

    A video is a file (``bytes``, a `Path`, or what vLLM has loaded from a URL) or
    its frames: uint8 of shape ``(frames, height, width, channels)`` or ``(frames,
    channels, height, width)``, or a list of images. Frames are taken evenly from both.

    Args:
        load_file: Decodes a file; its arguments are the bytes and the most frames.
        num_frames: Most frames of a video.
        options: Options of `NemotronVLDataParser`.
    """

    def __init__(
        self, *, load_file: Callable[[bytes, int], Loaded], num_frames: int, **options
    ) -> None:
        super().__init__(**options)
        self._load_file = load_file
        self.num_frames = num_frames

    def _parse_video_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        if data is None:
            return None
        return VideoItems(cast(Any, self.read_videos(data)))

    def count_items(self, modality: str, data: Any) -> int:
        """Number of items in what a user passes as images or videos."""
        if modality != "video":
            return super().count_items(modality, data)
        return 0 if data is None else len(_as_videos(data))

    def read_videos(self, data: Any, num_frames: int = 0) -> list[Video | None]:
        """Read videos; what was read before is returned as it is.

        Args:
            data: One or several videos. ``None`` in their place stands for a video
                that vLLM has in its cache.
            num_frames: Most frames of a video; 0 for the engine's setting.

        Raises:
            VLLMValidationError: A video of another kind, without frames, too large,
                or damaged; or embeddings.
        """
        num_frames = num_frames or self.num_frames
        if isinstance(data, Mapping) or self.is_embeddings(data):
            raise VLLMValidationError(
                "video_embeds are not supported. Send the video, or image_embeds.",
                parameter="video",
            )
        return [self._read_video(item, num_frames) for item in _as_videos(data)]

    def _read_video(self, item: Any, num_frames: int) -> Video | None:
        if item is None or isinstance(item, Video):
            return item
        if isinstance(item, Path):
            item = content_of(item)
        if isinstance(item, bytes):
            item = MediaWithBytes(self._load_file(item, num_frames), item)
        if isinstance(item, MediaWithBytes):
            frames, about = item.media
            if about.get("video_backend") == LOADER:
                resize = about["resize"]
                identity = item.original_bytes, resize, about["frames_indices"]
                return Video(frames, identity, resize)
            item = frames
        if _is_frames_and_metadata(item):
            item = item[0]
        frames = _as_frames(item)
        taken = [frames[index] for index in frame_indices(len(frames), num_frames)]
        images = [to_image(frame) for frame in taken]
        return Video(images, images)  # type: ignore[arg-type]


def _is_frames_and_metadata(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Mapping)


def _is_array(item: Any, *ndims: int) -> bool:
    return isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim in ndims


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or _is_array(item, 2, 3)


def _as_videos(data: Any) -> Sequence[Any]:
    """A list with one video, or the several that were passed."""
    if _is_array(data, 5):
        return list(data)
    several = isinstance(data, (list, tuple)) and not (
        _is_frames_and_metadata(data) or (data and all(map(_is_frame, data)))
    )
    return data if several else [data]


def _as_frames(item: Any) -> Sequence[Any]:
    """The frames of a video that is no file."""
    frames = list(item) if _is_array(item, 4) else item
    if not isinstance(frames, (list, tuple)) or not all(map(_is_frame, frames)):
        given = type(item).__name__
        if isinstance(item, (np.ndarray, torch.Tensor)):
            given = f"an array of shape {tuple(item.shape)}"
        raise VLLMValidationError(
            "A video must be a file (bytes, Path), a list of images, or an array of "
            f"shape (frames, height, width, 3), not {given}.",
            parameter="video",
        )
    if not len(frames):
        raise VLLMValidationError("The video has no frames.", parameter="video")
    return frames
