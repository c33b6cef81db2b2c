# SPDX-License-Identifier: Apache-2.0
"""Processors of ``Llama_Nemotron_Nano_VL_Video``, and its loader of video files.

A video is read as an image of as many tiles as it has frames: one ``<img>``, the
image tokens of all frames, one ``</img>``. Each frame is squashed to one tile. So does
NVIDIA's example of the model, for VideoMME and in training
(https://github.com/NVIDIA/Megatron-LM/tree/db8cd9aa3b/examples/multimodal, 2025-06-13).
"""

import threading
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.utils import TensorType
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.processing import PromptUpdateDetails
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader
from vllm.tokenizers.hf import HfTokenizer

from ...config.nemotron_vl_video import LOADER, MOST_FRAME_PIXELS
from ...multimodal.nemotron_vl_decoding import UnreadableVideo, decode
from ...multimodal.nemotron_vl_video import Loaded, Video
from .nemotron_vl import NemotronVLImageProcessor, NemotronVLProcessor
from .nemotron_vl_compat import InternVLChatVideoProcessor
from .nemotron_vl_digest import tile_digests


def tile_of_frame(frame: Image.Image, size: int, resize: str) -> torch.Tensor:
    """A frame as one tile, without its aspect ratio.

    Args:
        frame: RGB.
        size: Side of the tile in pixels.
        resize: One of `RESIZE_RECIPES`.

    Returns:
        uint8 of shape ``(3, size, size)``.
    """
    # Compiled loops: only processes that see videos import the compiler.
    from .nemotron_vl_recipes import resize as resize_to_tiles

    tile = torch.empty((3, size, size), dtype=torch.uint8)
    resize_to_tiles(frame, resize, [tile[None, None]])
    return tile


@VIDEO_LOADER_REGISTRY.register(LOADER)
class NemotronVLVideoLoader(VideoLoader):
    """Loads the taken frames of a file, each shrunk to a tile as it is decoded."""

    @classmethod
    def load_bytes(  # type: ignore[override]
        cls,
        data: bytes,
        num_frames: int,
        *,
        tile_size: int,
        resize: str,
        left: threading.Event | None = None,
    ) -> Loaded:
        """Tiles of a video file.

        Args:
            data: The file.
            num_frames: Most frames to take.
            tile_size: Side of a tile in pixels.
            resize: One of `RESIZE_RECIPES`.
            left: Set once the client has left, see `decode`.

        Returns:
            uint8 of shape ``(frames, 3, tile_size, tile_size)``, and vLLM's
            dictionary about them, with ``resize``.

        Raises:
            VLLMValidationError: See `UnreadableVideo`; or a frame has more pixels
                than ``VLLM_MAX_IMAGE_PIXELS``.
        """

        def shrink(frame: np.ndarray) -> np.ndarray:
            return tile_of_frame(Image.fromarray(frame), tile_size, resize).numpy()

        most = MOST_FRAME_PIXELS
        if envs.VLLM_MAX_IMAGE_PIXELS > 0:
            most = min(most, envs.VLLM_MAX_IMAGE_PIXELS)
        try:
            decoded = decode(data, num_frames, shrink, most, left)
        except UnreadableVideo as error:
            raise VLLMValidationError(str(error), parameter="video_url") from error
        return np.stack(decoded.frames), {
            "total_num_frames": decoded.total,
            "fps": decoded.fps,
            "duration": decoded.total / decoded.fps if decoded.fps > 0 else 0,
            "video_backend": LOADER,
            "frames_indices": decoded.indices,
            "do_sample_frames": False,
            "resize": resize,
        }


class NemotronVLVideoProcessor(InternVLChatVideoProcessor):
    """Makes one square uint8 tile of each frame.

    Args:
        image_size: Side of a tile in pixels.
        resize: One of `RESIZE_RECIPES`.
        do_rescale: Return float32 in 0..1 instead of uint8, as for images.
    """

    def __init__(self, image_size: int, *, resize: str, do_rescale: bool) -> None:
        super().__init__(image_size)
        self.resize = resize
        self.do_rescale = do_rescale

    def tiles(self, video: Video) -> torch.Tensor:
        """uint8 of shape ``(frames, 3, image_size, image_size)``."""
        if isinstance(video.frames, np.ndarray):
            return torch.from_numpy(video.frames)
        frames = [
            tile_of_frame(frame, self.image_size, self.resize) for frame in video.frames
        ]
        return torch.stack(frames)

    def __call__(  # type: ignore[override]
        self,
        videos: list[Video],
        *,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tiles of all videos, one after the other.

        Returns:
            ``pixel_values_flat_video`` (frames, 3, image_size, image_size), uint8 or
            float32; ``video_num_patches`` (videos), the number of frames of each;
            ``video_tile_digests`` (frames, 16), uint8, see `tile_digest`.
        """
        tiles = [self.tiles(video) for video in videos]
        pixels = torch.cat(tiles)
        if self.do_rescale:
            pixels = pixels.to(torch.float32) / 255
        features = {
            "pixel_values_flat_video": pixels,
            "video_num_patches": torch.tensor([len(video) for video in tiles]),
            "video_tile_digests": tile_digests(
                tiles, [video.reuse for video in videos]
            ),
        }
        return BatchFeature(features, tensor_type=return_tensors)


class NemotronVLProcessorWithVideo(NemotronVLProcessor):
    """The processor, which also replaces `VIDEO_PLACEHOLDER`."""

    def __init__(
        self,
        image_processor: NemotronVLImageProcessor,
        tokenizer: HfTokenizer,
        *,
        image_seq_length: int,
    ) -> None:
        super().__init__(image_processor, tokenizer, image_seq_length=image_seq_length)
        self.video_processor = NemotronVLVideoProcessor(
            image_processor.image_size,
            resize=image_processor.resize,
            do_rescale=image_processor.do_rescale,
        )
        # The embeddings of frames, too, take the place of `<image>` tokens.
        self.ctx_video_token = self.ctx_image_token
        self.ctx_video_token_id = self.ctx_image_token_id
        start, _, end = self._image_token_ids
        self.video_placeholder_ids = [start, end]

    def get_video_repl(self, num_patches: int) -> PromptUpdateDetails:
        return self.get_image_repl(num_patches)
