#!/usr/bin/env python3
"""Lay this project's tree over a vLLM checkout, as a contribution to vLLM.

    python tools/export_upstream.py ../vllm

- Files of `vllm/` are copied to the same paths. The model's file replaces vLLM's as a
  whole. Ours is appended to other files of the same name: they hold what other models
  need, or functions with which vLLM's tests compute what they expect.
- The models are added to the registry, the plugin's entry point to pyproject.toml, and
  rows to the table of supported models.
- `tests/vllm` is copied to `tests/models/multimodal/nemotron_vl`, with `tests/support`
  and the modules of `nemotron_vl/` and `tools/` that they import. All import `vllm`.

Running it again replaces what an earlier run wrote. Review `git diff` in the checkout.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from vllm_nemotron_vl.config.nemotron_vl_names import (
    ARCHITECTURE,
    RETRIEVAL_MODEL_TYPES,
    VIDEO_ARCHITECTURE,
)

ROOT = Path(__file__).parents[1]
MARK = "\n\n# Laid over by tools/export_upstream.py of vllm-nemotron-vl:\n\n"
REPLACED = Path("vllm/model_executor/models/nemotron_vl.py")
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
TESTS = Path("tests/models/multimodal/nemotron_vl")
SETTINGS = """\
[pytest]
pythonpath = . tools
addopts = --import-mode=importlib -m "not releases"
markers = releases: a longer test
filterwarnings = ignore::DeprecationWarning
"""
# Tests of an installation beside a vLLM.
LEFT_OUT = {
    ROOT / "tests/vllm/plugins/test_nemotron_vl.py",
    ROOT / "tests/vllm/plugins/test_register.py",
}
# Examples that the tests run.
EXAMPLES = [ROOT / "examples/quantize.py"]
# Where the tests find the modules that they import, and where these are laid.
SOURCES = {ROOT / "tests": Path(), ROOT / "tools": Path("tools"), ROOT: Path()}


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
        place = file.relative_to(ROOT)
        target, ours = checkout / place, file.read_bytes()
        if target.exists() and place != REPLACED:
            theirs, marked, _ = target.read_bytes().partition(MARK.encode())
            if marked or theirs != ours:
                ours = theirs + MARK.encode() + ours
        write(target, ours)


def lay_tests(checkout: Path) -> None:
    laid = {
        file: file.relative_to(ROOT / "tests/vllm")
        for file in files_below(ROOT / "tests/vllm")
        if file not in LEFT_OUT
    }
    helpers = [ROOT / "tests/conftest.py", *files_below(ROOT / "tests/support")]
    for file, source in needed([*laid, *helpers]).items():
        laid.setdefault(file, SOURCES[source] / file.relative_to(source))
    for file in helpers:
        laid[file] = file.relative_to(ROOT / "tests")
    # Data lie beside the modules of a package.
    for file in [*laid]:
        if file.is_relative_to(ROOT / "tests") or file.parent == ROOT / "tools":
            continue
        for data in files_below(file.parent):
            if data.suffix != ".py":
                laid[data] = laid[file].parent / data.relative_to(file.parent)
    for file in EXAMPLES:
        laid[file] = file.relative_to(ROOT)
    for file, place in laid.items():
        content = file.read_bytes().replace(b"vllm_nemotron_vl", b"vllm")
        write(checkout / TESTS / place, content)
    write(checkout / TESTS / "pytest.ini", SETTINGS.encode())


def needed(files: Iterable[Path]) -> dict[Path, Path]:
    """Files that Python files import from here, each with its folder of `SOURCES`."""
    found: dict[Path, Path] = {}
    todo = [file for file in files if file.suffix == ".py"]
    while todo:
        for module in imported(todo.pop()):
            for file, source in located(module):
                if file not in found:
                    found[file] = source
                    todo.append(file)
    return found


def imported(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, as they are found in `SOURCES`."""
    source = next(source for source in SOURCES if file.is_relative_to(source))
    package = file.relative_to(source).parts[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def located(module: str) -> Iterator[tuple[Path, Path]]:
    """The file of a module of `SOURCES`, and those of its packages."""
    parts = module.split(".")
    for source in SOURCES if parts[0] != "vllm" else ():
        file = source.joinpath(*parts).with_suffix(".py")
        packages = (
            source.joinpath(*parts[:n], "__init__.py") for n in range(1, len(parts) + 1)
        )
        there = [place for place in (file, *packages) if place.is_file()]
        if there:
            yield from ((place, source) for place in there)
            return


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
    # Rows that vLLM has, in other tables: only their module changes.
    retrieval = "|".join(RETRIEVAL_MODEL_TYPES)
    row = rf'( {{4}}"(?:{retrieval})": \(\s*)"nemotron_vl"'
    text = re.sub(row, r'\1"nemotron_vl_retrieval"', text)
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
