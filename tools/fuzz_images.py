#!/usr/bin/env python3
"""Coverage-guided fuzzing of the code that reads the bytes of an image.

    pip install atheris
    python tools/fuzz_images.py build/corpus -max_total_time=600

Mutates files of the formats that Pillow writes, guided by the coverage of Pillow's
readers and of this package. In less than five seconds, a file must either be read into
an RGB image or be refused with vLLM's error for the client. A file that breaks this is
written as crash-*; add it to
tests/vllm/models/multimodal/processing/test_fuzz.py. Further options are passed on to
libFuzzer.
"""

import io
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL"]):
    from PIL import Image

    Image.init()

from vllm.exceptions import VLLMValidationError

from vllm_nemotron_vl.multimodal import nemotron_vl, nemotron_vl_formats
from vllm_nemotron_vl.multimodal.nemotron_vl_loading import open_checked

atheris.instrument_func(nemotron_vl.to_rgb)
atheris.instrument_func(nemotron_vl_formats.check_structure)
_MOST_PIXELS = 10**6  # larger images are allowed, but slow


def read(data: bytes) -> None:
    try:
        opened = open_checked(data)
    except VLLMValidationError:
        return
    if opened.width * opened.height > _MOST_PIXELS:
        return
    try:
        image = nemotron_vl.to_rgb(opened)
    except VLLMValidationError:
        return
    assert image.mode == "RGB" and 0 not in image.size


def write_corpus(folder: Path) -> None:
    """Write a small file in each format and mode that Pillow can write."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Image.radial_gradient("L").resize((24, 16))
    for kind in Image.SAVE:
        for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):
            file = io.BytesIO()
            try:
                source.convert(mode).save(file, kind)
            except Exception:
                continue
            if len(file.getvalue()) < 20_000:
                (folder / f"{kind}-{mode.replace(';', '')}").write_bytes(
                    file.getvalue()
                )


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    write_corpus(Path(sys.argv[1]))
    crashes = f"-artifact_prefix={Path(sys.argv[1]).parent}/"
    atheris.Setup([*sys.argv, "-timeout=5", "-rss_limit_mb=4096", crashes], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
