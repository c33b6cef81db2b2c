# SPDX-License-Identifier: Apache-2.0
"""The process that decodes an image of a format whose cost nothing bounds.

`nemotron_vl_loading.py` runs this file as a script. It reads names of formats and a
file from its input, and writes the image as an uncompressed TIFF with all its levels.
Its memory and CPU time are bounded, and it can open nothing
(`nemotron_vl_confinement.py`). It imports nothing else of this package or of vLLM.
"""

import io
import os
import sys

# For an image of as many bytes and pixels as are allowed
_BYTES_A_PIXEL, _BYTES = 24, 1 << 29
_CPU_SECONDS = 3, 4


def main(server: int, most_pixels: int, formats: list[str]) -> None:
    """Decode the file from the input.

    Args:
        server: The process id of the server, whose end ends this process.
        most_pixels: Limit of an image; 0 for no limit.
        formats: Pillow's names.
    """
    sys.path.append(os.path.dirname(__file__))  # -P leaves it out
    import nemotron_vl_confinement as confinement

    sys.path.pop()
    confinement.leave_server(server)
    from PIL import Image, ImageOps

    Image.init()  # imports all readers
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints
    data = sys.stdin.buffer.read()
    memory = _BYTES + 4 * len(data) + _BYTES_A_PIXEL * (most_pixels or 1 << 30)
    confinement.give_up_rights(memory, _CPU_SECONDS)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if 0 < most_pixels < image.width * image.height:
            raise ValueError(
                f"it is {image.width}x{image.height} pixels; at most {most_pixels} "
                "pixels are allowed (VLLM_MAX_IMAGE_PIXELS)"
            )
        file = io.BytesIO()
        ImageOps.exif_transpose(image).save(file, "TIFF")
    except Exception as error:  # Pillow raises all kinds for damaged files
        sys.exit(f"{type(error).__name__}: {error}")
    out.write(file.getbuffer())
    out.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
