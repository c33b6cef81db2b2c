"""Scripts find what they import of this repository when they are run as scripts."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    file
    for folder in ("benchmarks", "examples", "tools")
    for file in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in file.read_text()
]

# Finds modules as the script would, and imports only their packages.
CODE = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
__file__, paths, modules = json.loads(sys.argv[1])
sys.path[0] = str(Path(__file__).parent)
ROOT = Path(__file__).parents[1]
exec(paths)
specs = [find_spec(module) for module in modules]
print(json.dumps([s.origin or [*s.submodule_search_locations][0] for s in specs]))
"""


def is_ours(module: str) -> bool:
    places = (ROOT, ROOT / "tests", ROOT / "tools", ROOT / "benchmarks")
    top = module.partition(".")[0]
    there = any((p / top).is_dir() or (p / f"{top}.py").is_file() for p in places)
    return top == "vllm_nemotron_vl" or (there and top != "vllm")


def defines(place: Path, name: str) -> bool:
    """Whether a module's file or a package's folder has a name."""
    if place.is_dir():
        return (place / f"{name}.py").exists()
    tree = ast.parse(place.read_text())
    found = {getattr(node, "name", getattr(node, "id", "")) for node in ast.walk(tree)}
    below = place.with_name(f"{name}.py"), place.with_name(name) / "__init__.py"
    return name in found or any(file.exists() for file in below)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_its_imports_are_there(file):
    tree = ast.parse(file.read_text())
    imports = [
        (node.module or "", alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or "")
        for alias in node.names
    ]
    paths = [s for s in map(ast.unparse, tree.body) if s.startswith("sys.path")]
    task = [str(file), "\n".join(paths), [module for module, _ in imports]]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(task)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for (module, name), place in zip(imports, json.loads(done.stdout), strict=True):
        assert defines(Path(place), name), f"{module}.{name}"
