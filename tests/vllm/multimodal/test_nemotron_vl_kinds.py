"""What users pass as images and videos, counted and told apart."""

import numpy as np
import pytest
import torch
from PIL import Image
from vllm.exceptions import VLLMValidationError

from vllm_nemotron_vl.multimodal.nemotron_vl import NemotronVLDataParser
from vllm_nemotron_vl.multimodal.nemotron_vl_video import (
    _as_frames,
    _as_videos,
    _is_frames_and_metadata,
)

IMAGE = Image.new("RGB", (4, 6))
FRAMES = np.zeros((3, 6, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (None, 0),
        ([], 0),
        (IMAGE, 1),
        ([IMAGE, IMAGE], 2),
        (FRAMES[0], 1),
        (torch.zeros(2, 4, 8), 2),  # embeddings
        ([torch.zeros(4, 8)], 1),
    ],
)
def test_images_are_counted(data, count):
    assert NemotronVLDataParser().count_items("image", data) == count


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (FRAMES, 1),
        (np.stack([FRAMES, FRAMES]), 2),
        ([IMAGE, IMAGE], 1),
        ([[IMAGE], [IMAGE, IMAGE]], 2),
        ((FRAMES, {"fps": 2}), 1),
        ([(FRAMES, {"fps": 2}), FRAMES], 2),
        (b"a file", 1),
    ],
)
def test_videos_are_counted(data, count):
    assert len(_as_videos(data)) == count


def test_frames_may_have_metadata_beside_them():
    assert _is_frames_and_metadata((FRAMES, {}))
    for other in ((FRAMES,), (FRAMES, FRAMES), (FRAMES, {}, {}), [FRAMES, {}], FRAMES):
        assert not _is_frames_and_metadata(other)


@pytest.mark.parametrize("frames", [FRAMES, [*FRAMES], [IMAGE] * 3, (IMAGE,) * 3])
def test_frames_are_those_of_an_array_or_of_a_list(frames):
    found = _as_frames(frames)
    assert isinstance(found, (list, tuple)) and len(found) == 3


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (FRAMES[0], r"an array of shape \(6, 4, 3\)"),
        (5, "not int"),
        ([5], "not list"),
        ([], "The video has no frames"),
    ],
)
def test_other_things_are_no_frames(frames, said):
    with pytest.raises(VLLMValidationError, match=said):
        _as_frames(frames)
