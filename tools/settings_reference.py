#!/usr/bin/env python3
"""Writes docs/settings.md from the docstrings and signatures in the code.

python tools/settings_reference.py          # prints it
python tools/settings_reference.py --write  # into docs/settings.md
"""

import argparse
import contextlib
import inspect
import io
import os
import re
from pathlib import Path

os.environ["COLUMNS"] = "80"  # width of the help texts

from vllm_nemotron_vl.config.nemotron_vl import EncoderConfig
from vllm_nemotron_vl.entrypoints.cli.nemotron_vl.main import COMMANDS, main
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl import (
    NemotronVLImageProcessor,
)
from vllm_nemotron_vl.transformers_utils.processors.nemotron_vl_tiling import (
    RESIZE_RECIPES,
)

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
OF_VLLM = ("image_size", "do_rescale", "do_normalize")
HEAD = """# Settings

Made from the code by `tools/settings_reference.py`.

## Pictures: `mm_processor_kwargs`

For an engine with `--mm-processor-kwargs '{...}'`, for a request with
`mm_processor_kwargs` where the server runs with `--trust-request-mm-kwargs`. Defaults
are the checkpoint's where its files say something.
"""
ENCODER = """
## Encoder: `additional_config`

For an engine with `--additional-config '{"nemotron_vl": {...}}'`; unknown settings
are refused at start.
"""
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


def table(cls: type, left_out: tuple[str, ...] = ()) -> str:
    lines = ["", "| setting | default | meaning |", "|---|---|---|"]
    defaults = inspect.signature(cls).parameters
    for name, meaning in arguments(cls).items():
        if name not in left_out:
            default = defaults[name].default
            shown = f"`{default!r}`".lower() if default is not None else "see right"
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
    pictures = table(NemotronVLImageProcessor, OF_VLLM)
    recipes = ", ".join(f'`"{recipe}"`' for recipe in RESIZE_RECIPES)
    pictures = pictures.replace("One of `RESIZE_RECIPES`", f"One of {recipes}")
    commands = "".join(
        f"\n### {command}\n{help_of(command)}" for command in sorted(COMMANDS)
    )
    return HEAD + pictures + ENCODER + table(EncoderConfig) + COMMAND + commands


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/settings.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())
