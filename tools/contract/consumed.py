"""Finds what this package uses of vLLM, from the package's own source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from contract.by_hand import ATTRIBUTES, BEHAVIOUR, STATE
from contract.signatures import call_problem, override_problem
from contract.sources import Scope, Sources, Symbol, Value, is_class
from contract.trees import (
    Function,
    assigned,
    assignments,
    methods,
    statements,
    targets,
)
from vllm_nemotron_vl.plugins.nemotron_vl_contract import _imports, _names

VLLM = "vllm"
# Our packages, and the folders of the source tree that hold them.
OURS = {"vllm_nemotron_vl": "vllm", "nemotron_vl": "nemotron_vl"}
_MODULE = re.compile(r"vllm(\.\w+)+\.?")


@dataclass
class Use:
    """A name of vLLM, the places that use it, and whether it is there.

    Args:
        name: Dotted name.
        found: What the name stands for; ``None`` if this vLLM does not have it.
        needed: Whether something breaks without it; ``False`` for methods that are
            only inherited.
        certain: Whether the name is known to be vLLM's, without looking at another
            release.
        places: Files and lines of this package.
        problems: Calls and overrides that do not fit, as sentences.
    """

    name: str
    found: Symbol | None
    needed: bool = False
    certain: bool = False
    places: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)


class Consumed:
    """Uses of vLLM by name.

    Args:
        sources: Source of this package and of a vLLM.
        by_hand: Include the uses that are listed by hand.
    """

    def __init__(self, sources: Sources, by_hand: bool = True) -> None:
        self.sources = sources
        self.uses: dict[str, Use] = {}
        self._file = ""
        for module, tree in self._modules():
            lines = {
                alias: node.lineno
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom | ast.Import)
                for alias in _names([node])
            }
            for choices in _imports(tree):
                self._import(choices, lines)
            for scope, node in self._scopes(module, tree):
                self._expression(scope, node)
            self._strings(tree)
            for cls in [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]:
                self._overrides(Symbol(module, cls.name, cls))
        # Last: a method that is also used in another way stays needed.
        for module, tree in self._modules():
            for cls in [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]:
                self._inherited(Symbol(module, cls.name, cls))
        if by_hand:
            self._by_hand()

    def _modules(self) -> Iterator[tuple[str, ast.Module]]:
        """Our modules; uses are recorded for the module's file."""
        for ours in [name for name in OURS if name in self.sources.packages]:
            top = self.sources.packages[ours]
            for file in sorted(top.rglob("*.py")):
                path = file.relative_to(top)
                parts = [ours, *path.with_suffix("").parts]
                module = ".".join(parts).removesuffix(".__init__")
                if tree := self.sources.tree(module):
                    self._file = f"{OURS[ours]}/{path}"
                    yield module, tree

    def _use(
        self, name: str, found: Symbol | None, line: int = 0, **kind: bool
    ) -> Use | None:
        if found and (found.node is None or found.module.split(".")[0] != VLLM):
            return None
        use = self.uses.setdefault(name, Use(name, found))
        use.found = use.found or found
        use.needed |= kind.get("needed", True)
        use.certain |= kind.get("certain", False)
        use.places.add(f"{self._file}:{line}" if line else self._file)
        return use

    def _import(
        self, choices: list[list[tuple[str, str]]], lines: dict[tuple[str, str], int]
    ) -> None:
        """One of the choices must exist; the others are for other releases."""
        find = self.sources.resolve
        kept = [c for c in choices if all(find(*name) for name in c)]
        for module, name in kept[0] if kept else choices[0]:
            dotted = f"{module}.{name}" if name else module
            line = lines.get((module, name), 0)
            self._use(dotted, find(module, name), line, certain=True)

    def _scopes(
        self, module: str, tree: ast.Module
    ) -> Iterator[tuple[Scope, ast.Attribute | ast.Call]]:
        """Attributes and calls, each with the types of the names in scope."""

        def walk(node: ast.AST, scope: Scope) -> Iterator:
            for inner in ast.iter_child_nodes(node):
                if isinstance(inner, ast.ClassDef):
                    cls = Symbol(module, inner.name, inner)
                    yield from walk(inner, self._scope(module, dict(scope.names), cls))
                elif isinstance(inner, Function):
                    names = {**scope.names, **self._local(inner, module, scope.cls)}
                    yield from walk(inner, self._scope(module, names, scope.cls))
                else:
                    if isinstance(inner, ast.Attribute | ast.Call):
                        yield scope, inner
                    yield from walk(inner, scope)

        yield from walk(tree, self._scope(module, {}, None))

    def _scope(self, module: str, names: dict, cls: Symbol | None) -> Scope:
        return Scope(module, names, cls, self._note)

    def _local(
        self, function: Function, module: str, cls: Symbol | None
    ) -> dict[str, Value | None]:
        names = self.sources.parameters(function, module)
        first = [*names][:1]
        if cls and first in (["self"], ["cls"]):
            names[first[0]] = Value(cls, instance=first == ["self"])
        for _ in range(2):
            for node in ast.walk(function):
                match node:
                    case ast.Import() | ast.ImportFrom():
                        for place, name in _names([node]):
                            found = self.sources.resolve(place, name)
                            bound = name or place.split(".")[0]
                            names[bound] = self.sources.as_value(found)
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        scope = Scope(module, names, cls)
                        names[name] = self.sources.value(value, scope)
                    case ast.AnnAssign(target=ast.Name(id=name), annotation=kind):
                        names[name] = self.sources.annotated(kind, module)
        return names

    def _expression(self, scope: Scope, node: ast.Attribute | ast.Call) -> None:
        if isinstance(node, ast.Attribute):
            self.sources.value(node, scope)
            return
        match node:
            case ast.Call(
                func=ast.Attribute(value=inner, attr="load_state_dict"),
                args=[ast.Dict(keys=keys), *_],
            ):
                self._state_dict(self.sources.value(inner, scope), keys, node.lineno)
        quiet = Scope(scope.module, scope.names, scope.cls)
        callee = self.sources.value(node.func, quiet)
        if (
            callee is None
            or callee.instance
            or isinstance(callee.symbol.node, ast.Module)
        ):
            return
        symbol: Symbol | None = callee.symbol
        bound = isinstance(node.func, ast.Attribute) and not _is_static(callee.symbol)
        if symbol and isinstance(symbol.node, ast.ClassDef):
            made = symbol
            symbol = self.sources.get(made, "__init__")
            bound = True
            if symbol and made.module.split(".")[0] == VLLM:
                self._use(f"{made.dotted}.__init__", symbol, node.lineno)
        elif "." not in callee.symbol.name:
            bound = False
        if symbol is None or not isinstance(symbol.node, Function):
            return
        if symbol.module.split(".")[0] != VLLM:
            return
        if problem := call_problem(node, symbol.node, bound):
            use = self._use(symbol.dotted, symbol, node.lineno)
            assert use
            use.problems.add(f"{self._file}:{node.lineno}: {problem}")

    def _note(self, owner: Value, node: ast.Attribute, found: Symbol | None) -> None:
        symbol = owner.symbol
        if symbol.module.split(".")[0] == VLLM:
            self._use(f"{symbol.dotted}.{node.attr}", found, node.lineno)
            return
        if not is_class(symbol) or (found and found.module.split(".")[0] != VLLM):
            return
        bases = self.bases(symbol)
        having = [base for base in bases if self.sources.get(base, node.attr)]
        for base in having[:1] or bases:
            member = self.sources.get(base, node.attr)
            self._use(f"{base.dotted}.{node.attr}", member, node.lineno)

    def bases(self, cls: Symbol) -> list[Symbol]:
        """The nearest base classes of a class that are vLLM's."""
        found: list[Symbol] = []
        covered: set[Symbol] = set()
        for base in self.sources.mro(cls):
            if base.module.split(".")[0] == VLLM and base not in covered:
                found.append(base)
                covered |= {*self.sources.mro(base)}
        return found

    def _overrides(self, cls: Symbol) -> None:
        assert isinstance(cls.node, ast.ClassDef)
        for node in statements(cls.node.body):  # flags, mappings
            for target in targets(node):
                for base in self.bases(cls) if isinstance(target, ast.Name) else ():
                    found = self.sources.get(base, target.id)
                    self._use(f"{base.dotted}.{target.id}", found, node.lineno)
        for name, ours in methods(cls.node).items():
            for base in self.bases(cls):
                theirs = self.sources.get(base, name)
                use = self._use(f"{base.dotted}.{name}", theirs, ours.lineno)
                if (
                    use is None
                    or theirs is None
                    or not isinstance(theirs.node, Function)
                    or name == "__init__"
                    or _is_meant(ours, self.sources.read(cls.module))
                ):
                    continue
                if problem := override_problem(ours, theirs.node):
                    use.problems.add(f"{self._file}:{ours.lineno}: {problem}")

    def _inherited(self, cls: Symbol) -> None:
        assert isinstance(cls.node, ast.ClassDef)
        known = {use.found.node for use in self.uses.values() if use.found}
        for base in self.bases(cls):
            for ancestor in self.sources.mro(base):
                if not isinstance(ancestor.node, ast.ClassDef):
                    continue
                if ancestor.module.split(".")[0] != VLLM:
                    continue
                for name in methods(ancestor.node):
                    found = self.sources.get(base, name)
                    if found is None or found.node in known:
                        continue
                    known.add(found.node)
                    line = cls.node.lineno
                    self._use(f"{base.dotted}.{name}", found, line, needed=False)

    def _strings(self, tree: ast.Module) -> None:
        """Modules, and names in them, that are given as strings."""
        joined = [
            (node, [a.value for a in node.args if _is_string(a)])
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
        ]
        for node, strings in joined:
            for module, name in pairwise(strings):
                if _MODULE.fullmatch(module) and name.isidentifier():
                    found = self.sources.find(f"{module}.{name}")
                    self._use(f"{module}.{name}", found, node.lineno)
        for node in ast.walk(tree):
            if not _is_string(node):
                continue
            text = node.value
            if _MODULE.fullmatch(text):
                module = text.rstrip(".")
                ours = module.replace(VLLM, "vllm_nemotron_vl", 1)
                if self.sources.find(ours) is None:
                    self._use(module, self.sources.find(module), node.lineno)
            elif "\n" in text and "from vllm" in text:
                try:
                    script = ast.parse(text.replace("%r", "None"))
                except SyntaxError:
                    continue
                for choices in _imports(script):
                    self._import(choices, dict.fromkeys(choices[0], node.lineno))

    def _state_dict(self, owner: Value | None, keys: list, line: int) -> None:
        if owner and owner.instance and owner.symbol.module.split(".")[0] == VLLM:
            for key in keys:
                if _is_string(key) and "." not in key.value:
                    self._state(owner.symbol, key.value, line)

    def _state(self, cls: Symbol, name: str, line: int = 0) -> None:
        """Record that a class must keep a tensor in its state dict."""
        found = self.sources.get(cls, name) if self._keeps(cls, name) else None
        key = f"{cls.dotted}.{name} (state)"
        self._use(key, found, line, certain=True)

    def _keeps(self, cls: Symbol, name: str) -> bool:
        for base in self.sources.mro(cls):
            if not isinstance(base.node, ast.ClassDef):
                continue
            for _, node in assignments(base.node):
                if name not in assigned(node):
                    continue
                match node:
                    case ast.Call(keywords=keywords):
                        kept = {k.arg: ast.unparse(k.value) for k in keywords}
                        if kept.get("persistent") != "False":
                            return True
                    case ast.Assign(value=ast.Call(func=made)) if ast.unparse(
                        made
                    ).endswith("Parameter"):
                        return True
        return False

    def _by_hand(self) -> None:
        for path, names in ATTRIBUTES.items():
            self._file = path
            for name in names:
                self._use(name, self.sources.find(name), certain=True)
        self._file = "tools/contract/by_hand.py"
        for name in BEHAVIOUR:
            found = self.sources.find(name)
            self._use(name, found, certain=True)
            if found and isinstance(found.node, ast.ClassDef):
                for method in methods(found.node):
                    member = self.sources.get(found, method)
                    self._use(f"{name}.{method}", member, needed=False)
        for owner, names in STATE.items():
            cls = self.sources.find(owner)
            for name in names:
                if cls is None:
                    self._use(owner, None, certain=True)
                else:
                    self._state(cls, name)


def _is_string(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_static(symbol: Symbol) -> bool:
    decorators = getattr(symbol.node, "decorator_list", [])
    return any(ast.unparse(d) == "staticmethod" for d in decorators)


def _is_meant(method: Function, text: tuple[bytes, bool] | None) -> bool:
    """Whether a method is marked as an incompatible override on purpose."""
    lines = text[0].decode().splitlines() if text else []
    head = lines[method.lineno - 1 : method.body[0].lineno]
    return any("type: ignore[override]" in line for line in head)
