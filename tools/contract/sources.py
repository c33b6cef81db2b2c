"""Packages as griffe reads them from their files, module by module."""

import ast
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import griffe

Node = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.AnnAssign


class Sources:
    """What packages define. Nothing is imported.

    Args:
        packages: Folders by the package's name.
    """

    def __init__(self, packages: dict[str, Path]) -> None:
        self.packages = packages
        self.module = cache(self._module)
        self.tree = cache(self._tree)
        self.mro = cache(self._mro)
        self._nodes = cache(self._index)

    def file(self, module: str) -> Path | None:
        package, *rest = module.split(".")
        if package in self.packages:
            place = self.packages[package].joinpath(*rest)
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    return file
        return None

    def _module(self, dotted: str) -> griffe.Module | None:
        """A module with its definitions; a folder without __init__.py has none."""
        package, *rest = dotted.split(".")
        if package not in self.packages:
            return None
        above, _, name = dotted.rpartition(".")
        parent = self.module(above) if above else None
        if file := self.file(dotted):
            return griffe.visit(name, file, file.read_text(), parent=parent)
        there = self.packages[package].joinpath(*rest).is_dir()
        return griffe.Module(name, parent=parent) if there else None

    def _tree(self, module: str) -> ast.Module:
        file = self.file(module)
        return ast.parse(file.read_bytes() if file else "")

    def find(self, dotted: str, seen: tuple[str, ...] = ()) -> griffe.Object | None:
        """What a dotted name stands for; imports are followed."""
        first, *parts = dotted.split(".")
        found: griffe.Object | None = self.module(first)
        for part in parts:
            found = self.get(found, part, seen) if found else None
        return found

    def get(
        self, owner: griffe.Object, name: str, seen: tuple[str, ...] = ()
    ) -> griffe.Object | None:
        """A name of a module, or a member of a class or of its base classes."""
        if owner.is_class:
            members = (cls.members.get(name) for cls in self.mro(owner))
            return next(filter(None, members), None) or self._assigned(owner, name)
        path = f"{owner.path}.{name}"
        if not owner.is_module or path in seen:
            return None
        seen = (*seen, path)
        member = owner.members.get(name)
        if member is None or not member.is_alias:
            stars = (m for m in owner.members.values() if m.is_alias and m.wildcard)
            inside = (self.find(f"{m.wildcard}.{name}", seen) for m in stars)
            return member or next(filter(None, inside), None) or self.module(path)
        for target in chain([member.target_path], self._imports(owner.path, name)):
            if target.split(".")[0] not in self.packages:
                return griffe.Attribute(name)  # of another package
            if target != path and (found := self.find(target, seen)):
                return found
        return self.module(path)

    def _assigned(self, cls: griffe.Class, name: str) -> griffe.Attribute | None:
        """What a method sets on ``self``; griffe reads only ``__init__``."""
        for base in self.mro(cls):
            for node in ast.walk(self.node(base) or ast.Pass()):
                match node:
                    case ast.Attribute(ast.Name("self"), attr, ast.Store()):
                        if attr == name:
                            return griffe.Attribute(name)
        return None

    def _imports(self, module: str, name: str) -> Iterator[str]:
        """All that a module imports under a name; griffe keeps the last one."""
        for node in ast.walk(self.tree(module)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        yield f"{node.module}.{alias.name}"

    def _mro(self, cls: griffe.Class) -> list[griffe.Class]:
        """A class and its base classes; shared bases come last."""
        order = [cls]
        for base in cls.bases:
            first, *parts = str(base).partition("[")[0].split(".")
            found = self.get(cls.module, first)
            for part in parts:
                found = self.get(found, part) if found else None
            if found and found.is_class:
                order += self.mro(found)
        return [c for place, c in enumerate(order) if c not in order[place + 1 :]]

    def node(self, found: griffe.Object) -> Node | None:
        """The syntax of a class, a function, or an annotated field of a class."""
        if found.is_module or not found.lineno:
            return None
        node = self._nodes(found.module.path).get((found.name, found.endlineno))
        if isinstance(node, ast.AnnAssign) and not found.parent.is_class:
            return None
        return node

    def _index(self, module: str) -> dict[tuple[str, int | None], Node]:
        index: dict[tuple[str, int | None], Node] = {}
        for node in ast.walk(self.tree(module)):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    index[name, node.end_lineno] = node
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    index[node.name, node.end_lineno] = node
        return index
