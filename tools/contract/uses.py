"""Finds what our packages use of a vLLM."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import griffe

from contract.by_hand import ATTRIBUTES, BEHAVIOUR, STATE
from contract.sources import Sources
from vllm_nemotron_vl.plugins.nemotron_vl_contract import imports

# Our packages, and the folders of the source tree that hold them.
OURS = {"vllm_nemotron_vl": "vllm", "nemotron_vl": "nemotron_vl"}
_MODULE = re.compile(r"vllm(\.\w+)+\.?")


@dataclass
class Use:
    """A name of vLLM and the places of ours that use it.

    Args:
        needed: Whether something breaks without it; ``False`` for methods that are
            only inherited.
        places: Files, some with lines.
    """

    needed: bool = False
    places: set[str] = field(default_factory=set)


class Uses(dict[str, Use]):
    """Imports, base classes, overridden and inherited methods, and names in strings.

    Args:
        tree: Folder with our packages' folders.
        vllm: Folder of vLLM's package.
    """

    def __init__(self, tree: Path, vllm: Path, by_hand: bool = True) -> None:
        folders = {name: tree / folder for name, folder in OURS.items()}
        self.ours = {name: f for name, f in folders.items() if f.is_dir()}
        self.sources = Sources({**self.ours, "vllm": vllm})
        for path, name in self._modules():
            syntax = self.sources.tree(name)
            self._imports(syntax, path)
            self._strings(syntax, path)
            for cls in self._classes(name):
                self._overridden(cls, path)
        known = {found.path for name in self if (found := self.found(name))}
        for path, name in self._modules():
            for cls in self._classes(name):
                self._inherited(cls, path, known)
        for path, names in ATTRIBUTES.items() if by_hand else ():
            for name in names:
                self.use(name, path)
        for owner, names in STATE.items() if by_hand else ():
            for name in names:
                self.use(f"{owner}.{name} (state)", "tools/contract/by_hand.py")
        for name in BEHAVIOUR if by_hand else ():
            self.use(name, "tools/contract/by_hand.py")
            found = self.sources.find(name)
            for method in _methods(found) if found and found.is_class else ():
                self.use(f"{name}.{method}", "tools/contract/by_hand.py", needed=False)

    def use(self, name: str, place: str, needed: bool = True) -> None:
        use = self.setdefault(name, Use())
        use.needed |= needed
        package, _, path = place.partition("/")
        use.places.add(f"{OURS.get(package, package)}/{path}")

    def found(self, name: str) -> griffe.Object | None:
        """What a name stands for in vLLM, or ``None`` if it is missing."""
        dotted, _, state = name.partition(" (")
        if state:
            owner, _, name = dotted.rpartition(".")
            return griffe.Attribute(name) if self._is_state(owner, name) else None
        return self.sources.find(dotted)

    def files(self) -> dict[Path, str]:
        """Our files, without the alternative imports that this vLLM lacks."""
        return {
            Path(name, file.relative_to(top)): self._text(file.read_text())
            for name, top in self.ours.items()
            for file in top.rglob("*.py")
        }

    def _text(self, text: str) -> str:
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Try):
                first, last = node.body[0], node.body[-1]
                body = ast.Module(node.body, [])
                names = [n for choices in imports(body) for n in choices[0]]
                if not all(self.sources.find(".".join(filter(None, n))) for n in names):
                    lines[first.lineno - 1] = " " * first.col_offset + "pass"
                    for line in range(first.lineno, last.end_lineno or 0):
                        lines[line] = ""
        return "\n".join(lines)

    def _modules(self) -> Iterator[tuple[str, str]]:
        for ours, top in self.ours.items():
            for file in sorted(top.rglob("*.py")):
                path = file.relative_to(top)
                name = ".".join([ours, *path.with_suffix("").parts])
                yield f"{ours}/{path}", name.removesuffix(".__init__")

    def _classes(self, name: str) -> Iterator[griffe.Class]:
        module = self.sources.module(name)
        yield from module.classes.values() if module else ()

    def _imports(self, syntax: ast.AST, path: str) -> None:
        """One of the choices must exist; the others are for other releases."""
        for choices in imports(syntax):
            names = [[".".join(filter(None, n)) for n in choice] for choice in choices]
            kept = (c for c in names if all(map(self.sources.find, c)))
            for name in next(kept, names[0]):
                self.use(name, path)

    def _overridden(self, cls: griffe.Class, path: str) -> None:
        for base in self._bases(cls):
            for name in [*cls.functions, *cls.attributes]:
                if self.sources.get(base, name):
                    place = f"{path}:{cls.members[name].lineno}"
                    self.use(f"{base.path}.{name}", place)

    def _inherited(self, cls: griffe.Class, path: str, known: set[str]) -> None:
        for base in self._bases(cls):
            for ancestor in filter(_is_vllm, self.sources.mro(base)):
                for name in _methods(ancestor):
                    found = self.sources.get(base, name)
                    if found and found.path not in known:
                        known.add(found.path)
                        place = f"{path}:{cls.lineno}"
                        self.use(f"{base.path}.{name}", place, needed=False)

    def _bases(self, cls: griffe.Class) -> list[griffe.Class]:
        """The nearest base classes of a class that are vLLM's."""
        found: list[griffe.Class] = []
        covered: list[griffe.Class] = []
        for base in self.sources.mro(cls):
            if _is_vllm(base) and base not in covered:
                found.append(base)
                covered += self.sources.mro(base)
        return found

    def _strings(self, syntax: ast.AST, path: str) -> None:
        """Modules, and names in them, that are given as strings."""
        for node in ast.walk(syntax):
            if isinstance(node, ast.Call):
                texts = [a.value for a in node.args if _is_string(a)]
                for module, name in pairwise(texts):
                    if _MODULE.fullmatch(module) and name.isidentifier():
                        self.use(f"{module}.{name}", f"{path}:{node.lineno}")
            elif _is_string(node) and _MODULE.fullmatch(node.value):
                name = node.value.rstrip(".")
                if not self.sources.find(name.replace("vllm", "vllm_nemotron_vl", 1)):
                    self.use(name, f"{path}:{node.lineno}")
            elif _is_string(node) and "\n" in node.value and "from vllm" in node.value:
                try:
                    self._imports(ast.parse(node.value.replace("%r", "None")), path)
                except SyntaxError:
                    continue

    def _is_state(self, owner: str, name: str) -> bool:
        """Whether instances of a class keep a tensor in their state dict."""
        cls = self.sources.find(owner)
        for base in self.sources.mro(cls) if cls and cls.is_class else ():
            for node in ast.walk(self.sources.node(base) or ast.Pass()):
                match node:
                    case ast.Call(
                        func=ast.Attribute(
                            attr="register_buffer" | "register_parameter"
                        ),
                        args=[ast.Constant(value=key), *_],
                    ) if key == name:
                        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                        return options.get("persistent") != "False"
                    case ast.Assign(
                        targets=[ast.Attribute(attr=key)], value=ast.Call(func=made)
                    ) if key == name and ast.unparse(made).endswith("Parameter"):
                        return True
        return False


def _methods(cls: griffe.Class) -> Iterator[str]:
    yield from cls.functions
    yield from (n for n, a in cls.attributes.items() if "property" in a.labels)


def _is_vllm(found: griffe.Object) -> bool:
    return found.path.startswith("vllm.")


def _is_string(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
