#!/usr/bin/env python3
"""Lay this project's tree over a vLLM checkout, as a contribution to vLLM.

    python tools/export_upstream.py ../vllm

- Files of `vllm/` are copied to the same paths. If vLLM has a file of that name, ours
  is appended to it: it adds definitions and replaces one class.
- The models are added to the registry, the plugin's entry point to pyproject.toml, and
  rows to the table of supported models.
- The tests are copied to `tests/vllm/models/multimodal/nemotron_vl` and import `vllm`.

Running it again replaces what an earlier run wrote. Review `git diff` in the checkout.
"""

import argparse
import re
import sys
from pathlib import Path

from vllm_nemotron_vl.config.nemotron_vl_names import (
    ARCHITECTURE,
    VIDEO_ARCHITECTURE,
)

ROOT = Path(__file__).parents[1]
MARK = "\n\n# Laid over by tools/export_upstream.py of vllm-nemotron-vl:\n\n"
REGISTRY_LINES = (
    f'    "{ARCHITECTURE}": ("nemotron_vl", "LlamaNemotronVLChatModel"),\n'
    f'    "{VIDEO_ARCHITECTURE}": '
    '("nemotron_vl_video", "LlamaNemotronVLVideoChatModel"),\n'
)
ENTRY_POINTS = '[project.entry-points."vllm.general_plugins"]\n'
ENTRY_POINT = 'nemotron_vl = "vllm.plugins.nemotron_vl:register"\n'
ROWS = "".join(
    f"| `{name}` | Llama Nemotron Nano VL | {inputs} "
    "| `nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1` | ✅︎ | ✅︎ |\n"
    for name, inputs in (
        (ARCHITECTURE, "T + I<sup>E+</sup>"),
        (VIDEO_ARCHITECTURE, "T + I<sup>E+</sup> + V<sup>+</sup>"),
    )
)
TESTS = Path("tests/vllm/models/multimodal/nemotron_vl")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="folder with vLLM's source code")
    args = parser.parse_args()
    registry = args.checkout / "vllm/model_executor/models/registry.py"
    if not registry.is_file():
        sys.exit(f"{args.checkout} is not a vLLM checkout: it has no {registry.name}.")
    lay_tree(args.checkout)
    edit(registry, add_to_registry)
    edit(args.checkout / "pyproject.toml", add_entry_point)
    edit(args.checkout / "docs/models/supported_models.md", add_row)
    lay_tests(args.checkout)


def write(file: Path, content: bytes) -> None:
    """Write a file; a symbolic link is replaced, not followed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def files_below(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]


def lay_tree(checkout: Path) -> None:
    for file in files_below(ROOT / "vllm"):
        target = checkout / file.relative_to(ROOT)
        ours = file.read_bytes()
        if target.exists():
            theirs, marked, _ = target.read_bytes().partition(MARK.encode())
            if marked or theirs != ours:
                ours = theirs + MARK.encode() + ours
        write(target, ours)


def lay_tests(checkout: Path) -> None:
    for file in files_below(ROOT / "tests"):
        content = file.read_bytes().replace(b"vllm_nemotron_vl", b"vllm")
        write(checkout / TESTS / file.relative_to(ROOT / "tests"), content)


def edit(file: Path, change) -> None:
    """Change a text file; print a message if the checkout does not have it."""
    if not file.is_file():
        print(f"skipped {file}: it does not exist", file=sys.stderr)
        return
    text = file.read_text()
    new = change(text)
    if new != text:
        write(file, new.encode())


def add_to_registry(text: str) -> str:
    names = f"{ARCHITECTURE}|{VIDEO_ARCHITECTURE}"
    text = re.sub(rf' {{4}}"({names})": \([^)]*\),\n', "", text)
    table = "_MULTIMODAL_MODELS = {\n"
    if table not in text:
        sys.exit("The registry has no table _MULTIMODAL_MODELS.")
    return text.replace(table, table + REGISTRY_LINES)


def add_entry_point(text: str) -> str:
    if ENTRY_POINT in text:
        return text
    if ENTRY_POINTS in text:
        return text.replace(ENTRY_POINTS, ENTRY_POINTS + ENTRY_POINT)
    return f"{text.rstrip()}\n\n{ENTRY_POINTS}{ENTRY_POINT}"


def add_row(text: str) -> str:
    """Add rows to the table of multimodal models, in alphabetical order."""
    names = f"{ARCHITECTURE}|{VIDEO_ARCHITECTURE}"
    text = re.sub(rf"^\| `({names})` \|.*\n", "", text, flags=re.MULTILINE)
    after = [
        found
        for found in re.finditer(r"^\| `(\w+)` \|.*\n", text, re.MULTILINE)
        if found.group(1) < ARCHITECTURE and "I<sup>" in found.group(0)
    ]
    if not after:
        print("The docs have no table of multimodal models.", file=sys.stderr)
        return text
    place = after[-1].end()
    return text[:place] + ROWS + text[place:]


if __name__ == "__main__":
    main()
