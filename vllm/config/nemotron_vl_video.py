# SPDX-License-Identifier: Apache-2.0
"""Settings of videos, from vLLM's ``media_io_kwargs``, and their limits."""

from collections.abc import Mapping
from typing import Any

from .nemotron_vl_names import IMAGE_END, IMAGE_START

# Name of our loader among vLLM's video loaders.
LOADER = "nemotron_vl"

# The place of a video in a prompt: two special tokens that no image has side by
# side. `<video>` is no token of this tokenizer, and documents may contain it.
VIDEO_PLACEHOLDER = IMAGE_START + IMAGE_END

_BRACKETS = 2  # tokens of a video besides those of its frames

# vLLM's default for videos. No published source names a number for this model.
DEFAULT_FRAMES = 32
# Of an engine's setting. It bounds the pixels that one video sends to the workers.
MOST_FRAMES = 1024

# What the walk through a file may take. 36,000 frames are 20 minutes at 30 a second.
MOST_WALKED_FRAMES = 36_000
MOST_BYTES = 1 << 28
MOST_SECONDS = 60.0
# Of one frame; a frame of "8K" has 7680x4320 pixels.
MOST_FRAME_PIXELS = 8192 * 4320

# The only setting of users. The others come from the checkpoint and from `resize`.
FRAMES_KEY = "num_frames"


def num_frames_problem(value: object, most: int = MOST_FRAMES) -> str | None:
    """A message about a wrong number of frames in a setting, or ``None``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and 1 <= value <= most:  # type: ignore[operator]
        return None
    return (
        f"media_io_kwargs: video.{FRAMES_KEY} must be a whole number from 1 to {most}, "
        f"but is {value!r}."
    )


def most_frames_in(context: int, frame_tokens: int) -> int:
    """Frames of the longest video that a context holds; may be 0.

    Args:
        context: Tokens of ``--max-model-len``.
        frame_tokens: Tokens of a frame.
    """
    return max(0, (context - _BRACKETS) // frame_tokens)


def context_problem(num_frames: int, context: int, frame_tokens: int) -> str | None:
    """A message if longer videos cannot be served, or ``None``.

    Args:
        num_frames: The engine's setting.
        context: Tokens of ``--max-model-len``.
        frame_tokens: Tokens of a frame.
    """
    most = most_frames_in(context, frame_tokens)
    if num_frames <= most:
        return None
    tokens = num_frames * frame_tokens + _BRACKETS
    start = (
        f"A video of {num_frames} frame(s) takes {tokens} tokens, but --max-model-len "
        f"is {context}: "
    )
    if not most:
        return f"{start}every video will be refused."
    return (
        f"{start}videos of more than {most} frame(s) will be refused. To take fewer "
        "frames of them, set "
        f'--media-io-kwargs \'{{"video": {{"{FRAMES_KEY}": {most}}}}}\', or less to '
        "leave room for text."
    )


def check_options(options: Any) -> None:
    """Refuse options of vLLM that have no meaning for this model.

    Args:
        options: vLLM's ``MultiModalConfig``.

    Raises:
        ValueError: Names the option.
    """
    if options.video_pruning_rate:
        raise ValueError(
            f"video_pruning_rate = {options.video_pruning_rate!r} is not supported: "
            "this model was not trained with a part of the tokens of a video."
        )


def loader_settings(given: Mapping[str, Any], tile_size: int, resize: str) -> dict:
    """Complete ``media_io_kwargs["video"]`` of an engine for our loader.

    Args:
        given: What the user has set.
        tile_size: Side of a tile in pixels.
        resize: The recipe that resizes a frame to a tile.

    Raises:
        ValueError: An unknown setting, or a value out of range.
    """
    settings = {
        "video_backend": LOADER,
        FRAMES_KEY: DEFAULT_FRAMES,
        "tile_size": tile_size,
        "resize": resize,
    }
    fixed = {name: settings[name] for name in settings.keys() - {FRAMES_KEY}}
    for name, value in given.items():
        if name != FRAMES_KEY and fixed.get(name) != value:
            raise ValueError(
                f"media_io_kwargs: video.{name} = {value!r} is not supported; the only "
                f"setting of videos is {FRAMES_KEY}."
            )
    settings |= given
    if problem := num_frames_problem(settings[FRAMES_KEY]):
        raise ValueError(problem)
    return settings


def frame_indices(frames: int, num_frames: int) -> list[int]:
    """Which frames of a video are taken: evenly spread, the first and last included.

    Args:
        frames: Frames of the video, at least 1.
        num_frames: Most frames to take, at least 1.

    Returns:
        ``n = min(frames, num_frames)`` indices in ascending order. They equal
        ``numpy.linspace(0, frames - 1, n, dtype=int)``, which vLLM uses. Megatron-LM
        truncates ``torch.linspace``, which is float32: for some lengths and numbers it
        takes a neighbouring frame, but not for 32 frames.
    """
    if num_frames >= frames:
        return list(range(frames))
    if num_frames == 1:
        return [0]
    step = (frames - 1) / (num_frames - 1)
    return [*(int(i * step) for i in range(num_frames - 1)), frames - 1]
