"""Attributes and methods of vLLM that our packages use, found by mypy's types."""

import gc
import re
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from mypy import nodes, types
from mypy.build import BuildResult, build
from mypy.main import process_options

Types = dict[nodes.Expression, types.Type]

# Packages other than these are taken as untyped: reading them would take minutes.
_CONFIG = """\
[mypy]
python_version = 3.11
namespace_packages = true
ignore_missing_imports = true
check_untyped_defs = true
follow_imports = skip
[mypy-vllm.*]
follow_imports = silent
"""


# What griffe finds with a better message, and what follows from it.
_MISSING = ("attr-defined", "name-defined", "no-redef", "import-not-found")


def check(
    files: dict[Path, str], vllm: Path, cache: Path, keep_types: bool = False
) -> BuildResult:
    """Run mypy on our packages with a vLLM.

    Args:
        files: Texts of our packages' files, with paths such as ``nemotron_vl/main.py``.
        vllm: Folder of vLLM's package.
        cache: Folder for our files, and for what mypy keeps between runs.
        keep_types: Keep the types of all expressions in our files in the result.
    """
    cache.mkdir(parents=True, exist_ok=True)
    link = cache / "vllm"
    link.unlink(missing_ok=True)
    link.symlink_to(vllm.resolve())
    for known in cache.glob("*nemotron_vl/**/*.py"):
        if known.relative_to(cache) not in files:
            known.unlink()
    for path, text in files.items():
        place = cache / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists() or place.read_text() != text:
            place.write_text(text)
    (cache / "mypy.ini").write_text(_CONFIG)
    arguments = ["--config-file", "mypy.ini", "--cache-dir", "."]
    for package in sorted({path.parts[0] for path in files}):
        arguments += ["-p", package]
    with chdir(cache):  # mypy keeps relative paths
        sources, options = process_options(arguments)
        options.export_types = options.preserve_asts = keep_types
        for source in sources if keep_types else ():
            if source.path and Path(source.path).is_file():
                source.text = Path(source.path).read_text()  # not from the cache
        often = gc.get_threshold()
        try:
            return build(sources, options)
        finally:
            # mypy makes collections rare, which would let this process grow.
            gc.set_threshold(*often)


def problems(result: BuildResult) -> set[str]:
    """Calls, overrides and types that do not fit, as ``file:line: sentence``."""
    errors = (line for line in result.errors if ": error: " in line)
    return {
        line for line in errors if not line.endswith(tuple(f"[{c}]" for c in _MISSING))
    }


def used_members(
    result: BuildResult, files: dict[Path, str]
) -> Iterator[tuple[str, Path, int]]:
    """Members of vLLM's classes and modules that our packages use.

    Args:
        result: What `check` returned, with types.
        files: What `check` was given.

    Yields:
        Dotted names, each with a file and a line that use it.
    """
    # mypy does not say in which file an expression is, only where in it.
    places: dict[tuple[str, int, int], list[Path]] = {}
    for path, text in files.items():
        for line, content in enumerate(text.splitlines(), 1):
            for word in re.finditer(r"\w+", content):
                places.setdefault((word[0], line, word.end()), []).append(path)
    for node in result.types:
        for name in _names(node, result.types):
            named = node.callee if isinstance(node, nodes.CallExpr) else node
            place = named.name, named.end_line, named.end_column
            for path in places.get(place, ()):
                yield name, path, named.end_line


def _names(node: nodes.Expression, known: Types) -> Iterator[str]:
    match node:
        case nodes.MemberExpr(expr=nodes.RefExpr(node=nodes.MypyFile(fullname=module))):
            if module.split(".")[0] == "vllm":
                yield f"{module}.{node.name}"
        case nodes.MemberExpr(name=name, expr=owner):
            for cls in _classes(owner, known):
                yield from _member(cls, cls.mro, name)
        case nodes.SuperExpr(name=name, info=nodes.TypeInfo() as cls):
            yield from _member(cls, cls.mro[1:], name)
        case nodes.CallExpr(callee=nodes.RefExpr(node=nodes.TypeInfo() as made)):
            yield from _member(made, made.mro, "__init__")
        case nodes.CallExpr(
            callee=nodes.MemberExpr(name="load_state_dict", expr=owner),
            args=[nodes.DictExpr(items=items), *_],
        ):
            for cls in _classes(owner, known):
                for key, _ in items:
                    if isinstance(key, nodes.StrExpr) and "." not in key.value:
                        yield f"{cls.fullname}.{key.value} (state)"


def _member(cls: nodes.TypeInfo, mro: list[nodes.TypeInfo], name: str) -> Iterator[str]:
    """A member under the name of the nearest base class of vLLM's that has it."""
    defining = next((base for base in mro if name in base.names), None)
    if defining and defining.fullname.startswith("vllm."):
        theirs = (base for base in cls.mro if base.fullname.startswith("vllm."))
        yield next(f"{base.fullname}.{name}" for base in theirs if base.get(name))


def _classes(node: nodes.Expression, known: Types) -> Iterator[nodes.TypeInfo]:
    """Classes of which the value of an expression may be."""
    todo: list[types.Type | None] = [known.get(node)]
    while todo:
        match types.get_proper_type(todo.pop()):
            case types.Instance(type=cls):
                yield cls
            case types.UnionType(items=items):
                todo += items
            case types.TypeType(item=item):
                todo.append(item)
            case types.TypeVarType(upper_bound=bound):
                todo.append(bound)
            case types.FunctionLike() as made if made.is_type_obj():
                yield made.type_object()
