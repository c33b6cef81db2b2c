"""Numbers of frames: of a request, and those that a context holds."""

import pytest

from vllm_nemotron_vl.config.nemotron_vl_video import (
    MOST_FRAMES,
    context_problem,
    most_frames_in,
    num_frames_problem,
)

BRACKETS = 2  # tokens around the frames of a video


@pytest.mark.parametrize("value", [1, 8, MOST_FRAMES])
def test_whole_numbers_of_frames_are_taken(value):
    assert num_frames_problem(value) is None


@pytest.mark.parametrize("value", [0, -1, MOST_FRAMES + 1, 1.0, True, "8", None])
def test_other_numbers_of_frames_are_named(value):
    problem = num_frames_problem(value)
    assert problem is not None and problem.endswith(f"1 to 1024, but is {value!r}.")


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_context_holds_whole_frames_and_their_brackets(frames):
    context = 256 * frames + BRACKETS
    assert most_frames_in(context, 256) == frames
    assert most_frames_in(context - 1, 256) == frames - 1
    assert most_frames_in(1, 256) == 0
    assert context_problem(frames, context, 256) is None
    problem = context_problem(frames, context - 1, 256)
    assert problem is not None
    assert f"takes {context} tokens, but --max-model-len is {context - 1}" in problem
    if frames == 1:
        assert problem.endswith("every video will be refused.")
    else:
        assert f"videos of more than {frames - 1} frame(s) will be refused" in problem
        assert f'{{"video": {{"num_frames": {frames - 1}}}}}' in problem
