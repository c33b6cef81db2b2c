#!/usr/bin/env python3
"""Writes docs/settings.md from the docstrings and signatures in the code.

python tools/settings_reference.py          # prints it
python tools/settings_reference.py --write  # into docs/settings.md
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import re
from pathlib import Path

os.environ["COLUMNS"] = "80"  # width of the help texts

from nemotron_vl.main import COMMANDS, main
from vllm_nemotron_vl.config.nemotron_vl import EncoderConfig, ImageConfig
from vllm_nemotron_vl.config.nemotron_vl_video import (
    DEFAULT_FRAMES,
    FRAMES_KEY,
    MOST_FRAMES,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    RESIZE_RECIPES,
)

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
OF_VLLM = ("image_size", "do_rescale", "do_normalize", "do_convert_rgb")
HEAD = """# Settings

`tools/settings_reference.py` makes this page from the code.

## Images: `mm_processor_kwargs`

`--mm-processor-kwargs '{...}'` sets them for all requests. A request may set its own
with `mm_processor_kwargs` if the server runs with `--trust-request-mm-kwargs`. The
checkpoint's files override the defaults below: `max_num_tiles` of its
`preprocessor_config.json` is `max_dynamic_patch`.
"""
RECIPES = """
`resize` selects how images are resampled. The times are for a page of 1700x2200 pixels;
[preprocessing.md](preprocessing.md) has more of them, and images of the differences.

| `resize` | pixels | page | tokens |
|---|---|---|---|
| `"fast"` | those of `"exact"`, within 2 of 255 levels on every value (Pillow 13) | 11 ms | 256 a tile |
| `"exact"` | those of vLLM's in-tree model, bit for bit (bicubic as in Pillow) | 18 ms | 256 a tile |
| `"hf"` | those of the checkpoint's `image_processing.py` under transformers 4 to 5.3, which doubles the image first | 86 ms | more for small images: 512x512 pixels are 5 tiles instead of 1 |

A tile of 512 pixels takes 256 tokens. Each image takes two more, for `<img>` and
`</img>`. The tiling rule prefers the grid with the closest aspect ratio, so a small
image may take many tiles. `max_dynamic_patch` (at most 256) limits them; the thumbnail
is not counted.

`nemotron-vl tiles` prints the tiles and tokens of your images and draws the tiles. It
needs no engine. This example takes an image that `make demo` drew:

```bash
.venv/bin/nemotron-vl tiles build/demo/image_01.png -o build/image_tiles.png
```
"""  # noqa: E501
ENCODER = """
## Encoder and threads: `additional_config`

`--additional-config '{"nemotron_vl": {...}}'` sets them for an engine. An unknown
setting is refused at start. [encoder.md](encoder.md) explains tile reuse,
[preprocessing.md](preprocessing.md) the threads.
"""
VIDEO = f"""
## Videos: `media_io_kwargs`

`--media-io-kwargs '{{"video": {{...}}}}'` sets them for an engine that serves videos
([video.md](video.md)). A request may lower the number with `media_io_kwargs` if the server
runs with `--trust-request-mm-kwargs`.

| setting | default | meaning |
|---|---|---|
| `{FRAMES_KEY}` | `{DEFAULT_FRAMES}` | Most frames that are taken of a video, 1 to {MOST_FRAMES}. |
"""  # noqa: E501
COMMAND = """
## The command `nemotron-vl`
"""


def arguments(cls: type) -> dict[str, str]:
    """Name and text of each entry under ``Args:`` of a class's docstring."""
    text = inspect.getdoc(cls) or ""
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^    (?=\w)", section, flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        name, _, words = entry.partition(":")
        found[name] = " ".join(words.split()).replace("``", "`")
    return found


def table(*classes: type, left_out: tuple[str, ...] = ()) -> str:
    lines = ["", "| setting | default | meaning |", "|---|---|---|"]
    for cls in classes:
        defaults = inspect.signature(cls).parameters
        for name, meaning in arguments(cls).items():
            if name not in left_out:
                default = defaults[name].default
                shown = "see meaning" if default is None else f"`{json.dumps(default)}`"
                lines.append(f"| `{name}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def help_of(*words: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    # Before Python 3.13 a short option has its argument, too.
    text = re.sub(
        r"-(\w)( \w+)(, --[\w-]+\2 *)",
        lambda option: f"-{option[1]}{option[3]}{' ' * len(option[2])}",
        output.getvalue(),
    )
    return f"\n```text\n{text.rstrip()}\n```\n"


def page() -> str:
    images = table(NemotronVLImageProcessor, left_out=OF_VLLM)
    recipes = ", ".join(f'`"{recipe}"`' for recipe in RESIZE_RECIPES)
    images = images.replace("One of `RESIZE_RECIPES`", f"One of {recipes}")
    commands = "".join(
        f"\n### {command}\n{help_of(command)}" for command in sorted(COMMANDS)
    )
    encoder = ENCODER + table(EncoderConfig, ImageConfig)
    return HEAD + images + RECIPES + encoder + VIDEO + COMMAND + commands


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/settings.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())
