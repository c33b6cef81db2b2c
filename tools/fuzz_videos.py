#!/usr/bin/env python3
"""Coverage-guided fuzzing of the code that reads the bytes of a video.

    pip install atheris
    python tools/fuzz_videos.py build/video-corpus -max_total_time=600

Mutates short files of the kinds that OpenCV writes, guided by the coverage of this
package; FFmpeg runs in another process and is not instrumented. In less than ten
seconds, a file must either give frames or be refused with `UnreadableVideo`. A file
that breaks this is written as crash-*; add it to tests/support/bad_clips.py. Further
options are passed on to libFuzzer.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vllm_nemotron_vl.multimodal"]):
    from vllm_nemotron_vl.multimodal.nemotron_vl_decoding import (
        UnreadableVideo,
        decode,
    )

# The root is first: `tests/nemotron_vl` would hide the package.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("", "tests")]
from support.clips import LOSSLESS, LOSSY, encoded, noise

_MOST_PIXELS = 10**6  # larger frames are allowed, but slow


def read(data: bytes) -> None:
    try:
        found = decode(data, 4, lambda frame: frame.shape, _MOST_PIXELS)
    except UnreadableVideo:
        return
    assert 1 <= len(found.frames) <= 4 and len(found.indices) == len(found.frames)
    assert all(0 not in shape for shape in found.frames)


def write_corpus(folder: Path) -> None:
    """Write a short file of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for codec, suffix in LOSSLESS + LOSSY:
        data = encoded(noise(3, 16, 12), codec, suffix)
        (folder / f"{codec}.{suffix}").write_bytes(data)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    write_corpus(Path(sys.argv[1]))
    crashes = f"-artifact_prefix={Path(sys.argv[1]).parent}/"
    options = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=20000"]
    atheris.Setup([*sys.argv, *options, crashes], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
