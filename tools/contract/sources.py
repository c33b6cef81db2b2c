"""Python packages as syntax trees: names, base classes, members and types.

Nothing is imported. Types come from annotations and from constructor calls.
"""

import ast
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from contract.trees import Function, assigned, assignments, statements, targets

_COMPILED = re.compile(r"_C(_\w+)?")
_DEEPEST = 12  # longest chain of types to follow


@dataclass(frozen=True)
class Symbol:
    """Something that a module defines.

    Args:
        module: The module that defines it.
        name: Its name there: ``Class.method`` for members, "" for the module itself.
        node: The defining syntax node; ``None`` outside the packages that are read.
        scope: For an attribute, the method that assigns it.
    """

    module: str
    name: str
    node: ast.AST | None
    scope: Function | None = None

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Value:
    """The value of an expression: a symbol itself, or an instance of a class.

    Args:
        symbol: The class of the instance, or the symbol itself.
        instance: Whether it is an instance.
        parent: Whether it is ``super()``, which skips the class itself.
    """

    symbol: Symbol
    instance: bool = False
    parent: bool = False


Noted = Callable[[Value, ast.Attribute, Symbol | None], None]


def _ignore(value: Value, node: ast.Attribute, found: Symbol | None) -> None:
    pass


@dataclass
class Scope:
    """The context of an expression: module, class and the types of names."""

    module: str
    names: dict[str, Value | None]
    cls: Symbol | None = None
    note: Noted = _ignore
    depth: int = 0


class Sources:
    """Packages by name, each in a folder or a wheel.

    Compiled modules such as ``vllm._C`` are assumed to exist.
    """

    def __init__(self, packages: dict[str, Path]) -> None:
        self.packages = packages
        self._zips = {
            name: zipfile.ZipFile(place)
            for name, place in packages.items()
            if place.suffix == ".whl"
        }
        self.tree = cache(self._tree)
        self._names = cache(self._bindings)
        self.mro = cache(self._mro)

    def read(self, module: str) -> tuple[bytes, bool] | None:
        """The text of a module, and whether it is a package."""
        package, *rest = module.split(".")
        if package not in self.packages:
            return None
        for path, is_package in (
            ("/".join(rest) + ".py", False),
            ("/".join([*rest, "__init__.py"]), True),
        ):
            if package in self._zips:
                try:
                    return self._zips[package].read(f"{package}/{path}"), is_package
                except KeyError:
                    continue
            file = self.packages[package] / path
            if file.is_file():
                return file.read_bytes(), is_package
        return None

    def _tree(self, module: str) -> ast.Module | None:
        found = self.read(module)
        if found is None:
            # Folders without __init__.py, as in this project.
            package, *rest = module.split(".")
            there = package in self.packages and package not in self._zips
            folder = self.packages[package].joinpath(*rest) if there else None
            return ast.Module([], []) if folder and folder.is_dir() else None
        return ast.parse(found[0])

    def resolve(
        self, module: str, name: str, seen: tuple[tuple[str, str], ...] = ()
    ) -> Symbol | None:
        """What a name in a module stands for; imports are followed."""
        compiled = any(map(_COMPILED.fullmatch, (*module.split("."), name)))
        if module.split(".")[0] not in self.packages or compiled:
            return Symbol(module, name, None)
        if (module, name) in seen or (tree := self.tree(module)) is None:
            return None
        if not name:
            return Symbol(module, "", tree)
        seen = (*seen, (module, name))
        names, stars = self._names(module)
        for node in names.get(name, ()):
            if not isinstance(node, tuple):
                return Symbol(module, name, node)
            if found := self.resolve(*node, seen):
                return found
        for star in stars:
            found = self.resolve(star, name, seen)
            if found and found.node:
                return found
        return self.resolve(f"{module}.{name}", "", seen)

    def _bindings(self, module: str) -> tuple[dict[str, list], list[str]]:
        names: dict[str, list] = {}
        stars: list[str] = []
        tree = self.tree(module)
        for node in statements(tree.body if tree else []):
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.setdefault(node.name, []).insert(0, node)
                case ast.ImportFrom():
                    target = self._imported(module, node)
                    for alias in node.names:
                        if alias.name == "*":
                            stars.append(target)
                            continue
                        bound = alias.asname or alias.name
                        names.setdefault(bound, []).append((target, alias.name))
                case ast.Import():
                    for alias in node.names:
                        bound = alias.asname or alias.name.split(".")[0]
                        target = alias.name if alias.asname else bound
                        names.setdefault(bound, []).append((target, ""))
                case ast.Assign() | ast.AnnAssign():
                    for target_name in targets(node):
                        if isinstance(target_name, ast.Name):
                            names.setdefault(target_name.id, []).append(node)
        return names, stars

    def _imported(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        found = self.read(module)
        inside = module.split(".")
        drop = node.level - bool(found and found[1])
        inside = inside[: len(inside) - drop]
        return ".".join([*inside, node.module] if node.module else inside)

    def find(self, dotted: str) -> Symbol | None:
        """What a dotted name stands for. Its first part is a package."""
        package, *parts = dotted.split(".")
        found = self.resolve(package, "")
        for part in parts:
            found = self.get(found, part) if found else None
        return found

    def get(self, symbol: Symbol, name: str, *, parent: bool = False) -> Symbol | None:
        """A name of a module, or a member of a class including its base classes."""
        if isinstance(symbol.node, ast.Module):
            return self.resolve(symbol.module, name)
        for cls in self.mro(symbol)[parent:]:
            if cls.node is not None and (found := self._member(cls, name)):
                return found
        return None

    def _member(self, cls: Symbol, name: str) -> Symbol | None:
        assert isinstance(cls.node, ast.ClassDef)
        member = Symbol(cls.module, f"{cls.name}.{name}", None)
        found = None
        for node in statements(cls.node.body):
            if isinstance(node, Function | ast.ClassDef) and node.name == name:
                found = replace(member, node=node)  # the last one, after overloads
            for target in targets(node):
                if isinstance(target, ast.Name) and target.id == name:
                    found = found or replace(member, node=node)
        if found:
            return found
        for scope, node in assignments(cls.node):
            if name in assigned(node):
                return replace(member, node=node, scope=scope)
        return None

    def _mro(self, cls: Symbol) -> list[Symbol]:
        """A class and its base classes; shared bases come last."""
        order = [cls]
        if isinstance(cls.node, ast.ClassDef):
            for base in cls.node.bases:
                if found := self._class(base, cls.module):
                    order += self.mro(found)
        return [c for place, c in enumerate(order) if c not in order[place + 1 :]]

    def _class(self, node: ast.expr, module: str) -> Symbol | None:
        while isinstance(node, ast.Subscript):
            node = node.value
        value = self.value(node, Scope(module, {}))
        return value.symbol if value and is_class(value.symbol) else None

    def annotated(self, node: ast.expr | None, module: str) -> Value | None:
        """An instance of the class that an annotation names."""
        match node:
            case ast.Constant(value=str(text)):
                try:
                    node = ast.parse(text, mode="eval").body
                except SyntaxError:
                    return None
                return self.annotated(node, module)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self.annotated(left, module) or self.annotated(right, module)
            case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
                return self.annotated(inner, module)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                if isinstance(node, ast.Subscript) and (
                    isinstance(node.value, ast.Name)
                    and node.value.id in ("type", "list", "dict", "tuple")
                ):
                    return None
                found = self._class(node, module)
                return Value(found, instance=True) if found else None
        return None

    def parameters(self, function: Function, module: str) -> dict[str, Value | None]:
        """Types of a function's parameters."""
        arguments = function.args
        every = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
        return {a.arg: self.annotated(a.annotation, module) for a in every}

    def as_value(self, symbol: Symbol | None, depth: int = 0) -> Value | None:
        """The value of a symbol when it is read."""
        if symbol is None or depth > _DEEPEST:
            return None
        match symbol.node:
            case ast.FunctionDef(decorator_list=[*decorators], returns=returns) if any(
                "property" in ast.unparse(d) for d in decorators
            ):
                return self.annotated(returns, symbol.module)
            case ast.AnnAssign(annotation=annotation):
                return self.annotated(annotation, symbol.module)
            case ast.Assign(value=value):
                names = {}
                if symbol.scope:
                    names = self.parameters(symbol.scope, symbol.module)
                scope = Scope(symbol.module, names, depth=depth + 1)
                if "." in symbol.name:
                    owner = symbol.name.rpartition(".")[0]
                    scope.cls = self.resolve(symbol.module, owner)
                    if scope.cls:
                        names["self"] = Value(scope.cls, instance=True)
                return self.value(value, scope)
            case ast.Call():
                return None  # register_buffer
        return Value(symbol)

    def value(self, node: ast.AST, scope: Scope) -> Value | None:
        """The value of an expression, or ``None`` if annotations do not show it."""
        match node:
            case ast.Name(id=name):
                if name in scope.names:
                    return scope.names[name]
                found = self.resolve(scope.module, name)
                return self.as_value(found, scope.depth)
            case ast.Attribute(value=inner, attr=attr):
                owner = self.value(inner, scope)
                if owner is None or owner.symbol.node is None:
                    return None
                symbol = owner.symbol
                if not is_class(symbol) and not isinstance(symbol.node, ast.Module):
                    return None
                found = self.get(symbol, attr, parent=owner.parent)
                scope.note(owner, node, found)
                return self.as_value(found, scope.depth)
            case ast.Await(value=inner) | ast.NamedExpr(value=inner):
                return self.value(inner, scope)
            case (
                ast.IfExp(body=first, orelse=second)
                | ast.BoolOp(values=[first, second, *_])
            ):
                return self.value(first, scope) or self.value(second, scope)
            case ast.Call(func=ast.Name(id="super")) if scope.cls:
                return Value(scope.cls, instance=True, parent=True)
            case ast.Call(func=ast.Name(id="cast"), args=[kind, _]):
                return self.annotated(kind, scope.module)
            case ast.Call(func=called):
                callee = self.value(called, scope)
                if callee is None or callee.instance:
                    return None
                if isinstance(callee.symbol.node, Function):
                    returns = callee.symbol.node.returns
                    return self.annotated(returns, callee.symbol.module)
                if is_class(callee.symbol):
                    return Value(callee.symbol, instance=True)
        return None


def is_class(symbol: Symbol) -> bool:
    return isinstance(symbol.node, ast.ClassDef)
