"""What is mutated, and which tests should notice."""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

Graph = Mapping[str, Collection[str]]
Place = tuple[int, int]  # line, from 1, and column
T = TypeVar("T", bound=Hashable)

# The parts of the core that are counted apart.
PARTS = {"vllm": "vllm", "documents": "nemotron_vl/documents"}
# Only GPUs run it.
_LEFT_OUT = {"vllm/model_executor/models/nemotron_vl_graphs.py"}
_PACKAGES = {
    "vllm_nemotron_vl": "vllm",
    "nemotron_vl": "nemotron_vl",
    "support": "tests/support",
}


# In strings: modules that vLLM imports by name, and scripts beside a file.
_NAME = re.compile(r"\bvllm_nemotron_vl(?:\.\w+)+")
_SCRIPT = re.compile(r"\w+\.py")


def modules(root: Path, part: str) -> list[str]:
    """The files of a part, relative to the repository's root."""
    files = (root / PARTS[part]).rglob("*.py")
    names = sorted(file.relative_to(root).as_posix() for file in files)
    return [name for name in names if name not in _LEFT_OUT]


def import_graph(root: Path) -> Graph:
    """The files of this repository that each of its files imports or names."""
    return {
        file.relative_to(root).as_posix(): set(_imported(file, root))
        for folder in ("vllm", "nemotron_vl", "tests")
        for file in (root / folder).rglob("*.py")
    }


def _imported(file: Path, root: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        start = root
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            if node.level:
                start = file.parents[node.level - 1]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = _NAME.findall(node.value)
            names = [*named, *(name.rpartition(".")[0] for name in named)]
            if _SCRIPT.fullmatch(node.value):
                start, names = file.parent, [node.value.removesuffix(".py")]
        else:
            continue
        for name in names:
            parts = name.strip(".").split(".")
            if start is root:
                if parts[0] not in _PACKAGES:
                    continue
                parts[0] = _PACKAGES[parts[0]]
            found = start.joinpath(*parts).with_suffix(".py")
            if found.is_file():
                yield found.relative_to(root).as_posix()


def tests_of(module: str, graph: Graph) -> list[list[str]]:
    """The test files of a module in rings, none of them empty.

    First those that import or name the module, or have its name, such as
    ``test_read.py`` and ``test_read_options.py`` of ``read.py``. Then those that do so
    with what imports it, and so on.
    """
    reached, rings = {module}, []
    left = {name for name in graph if Path(name).name.startswith("test_")}
    while True:
        stems = {Path(name).stem for name in reached}
        # Nearly all tests of `vllm/` begin with the name of its main modules.
        named = tuple(f"test_{stem}_" for stem in stems - {"nemotron_vl"})
        found = {
            name
            for name in left
            if Path(name).stem.removeprefix("test_") in stems
            or f"{Path(name).stem}_".startswith(named)
            or not reached.isdisjoint(graph[name])
        }
        if found:
            rings.append(sorted(found))
            left -= found
        wider = reached | {n for n, i in graph.items() if not reached.isdisjoint(i)}
        if wider == reached:
            return rings
        reached = wider


def annotations(source: str) -> list[tuple[Place, Place]]:
    """Where a source has annotations of types, which no test can notice."""
    found: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            found.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(node.returns)
    return [
        ((a.lineno, a.col_offset), (a.end_lineno or 0, a.end_col_offset or 0))
        for a in found
        if a is not None
    ]


def shuffled(
    mutants: Iterable[tuple[Hashable, T]], seed: int
) -> Iterator[tuple[Hashable, T]]:
    """All places, each with one of its mutants, so that `+` counts no more than `not`.

    Args:
        mutants: The place and the name of each, which can be sorted.
        seed: Of the order and of the choice.
    """
    by_place = defaultdict(list)
    for place, mutant in mutants:
        by_place[place].append(mutant)
    chooser = random.Random(seed)
    places = sorted(by_place)  # type: ignore[type-var]
    chooser.shuffle(places)
    for place in places:
        yield place, chooser.choice(sorted(by_place[place]))
