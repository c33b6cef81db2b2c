"""Differences between a vLLM and the releases that were reviewed."""

import ast
import atexit
import copy
import difflib
import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from email.parser import Parser
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import griffe

from contract.members import check, problems, used_members
from contract.sources import Node
from contract.uses import OURS, Uses

_DEPENDENCIES = {
    "aiohttp", "compressed-tensors", "numba", "numpy", "pillow", "prometheus-client",
    "requests", "safetensors", "tokenizers", "torch", "torchvision", "transformers",
    "triton",
}  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?\s*(.*)")


@dataclass
class Release:
    """A vLLM: its folder or wheel, its version and the versions that it requires."""

    place: Path
    version: str
    requires: dict[str, str]


def release(place: Path) -> Release:
    """Read a release.

    Args:
        place: A wheel, a folder ``vllm``, or the folder that contains it.

    Raises:
        ValueError: The place has no vLLM.
    """
    if place.suffix == ".whl":
        unpacked = Path(tempfile.mkdtemp(prefix="vllm-"))
        atexit.register(shutil.rmtree, unpacked)
        with ZipFile(place) as wheel:
            wanted = (n for n in wheel.namelist() if n.endswith((".py", "METADATA")))
            wheel.extractall(unpacked, wanted)
        place = unpacked
    if (place / "vllm" / "_version.py").is_file():
        place = place / "vllm"
    if not (place / "_version.py").is_file():
        raise ValueError(f"There is no vLLM in {place}: it has no _version.py.")
    texts = [
        file.read_text()
        for file in sorted(place.resolve().parent.glob("vllm*.dist-info/METADATA"))
        if re.match(r"vllm(_cpu)?-\d", file.parent.name)
    ]
    found: dict[str, set[str]] = {}
    for text in texts:
        for line in Parser().parsestr(text).get_all("Requires-Dist", []):
            name, bounds = _REQUIREMENT.fullmatch(line).groups()
            name = re.sub(r"[._]", "-", name.lower())
            if name in _DEPENDENCIES and "extra ==" not in bounds:
                found.setdefault(name, set()).add(bounds.replace(" ", "") or "any")
    requires = {name: " or ".join(sorted(found[name])) for name in sorted(found)}
    text = (place / "_version.py").read_text()
    version = re.search(r"version = '(\d+\.\d+\.\d+)", text)
    return Release(place.resolve(), version[1] if version else "unknown", requires)


class Reviewed:
    """The file that records what was reviewed: digests of bodies, never the bodies."""

    def __init__(self, file: Path) -> None:
        self.file = file
        data = json.loads(file.read_text()) if file.exists() else {}
        self.requires: dict[str, dict[str, str]] = data.get("requires", {})
        self.symbols: dict[str, dict[str, str]] = data.get("symbols", {})

    def write(self) -> None:
        parts = {"requires": self.requires, "symbols": self.symbols}
        lines = []
        for part, entries in parts.items():  # one line per entry, which merges well
            inner = [
                f" {json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}"
                for name in sorted(entries)
            ]
            lines.append(f"{json.dumps(part)}: {{\n" + ",\n".join(inner) + "\n}")
        self.file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@dataclass
class Finding:
    name: str
    what: str
    places: list[str] = field(default_factory=list)
    diff: str = ""


@dataclass
class Report:
    version: str
    breaking: list[Finding] = field(default_factory=list)
    behavioural: list[Finding] = field(default_factory=list)
    dependencies: list[Finding] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.breaking or self.behavioural)

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def text(self, verbose: bool = False) -> str:
        lines = [f"vLLM {self.version}"]
        for title in ("breaking", "behavioural", "dependencies"):
            findings = getattr(self, title)
            lines.append(f"{title}: {len(findings) or 'none'}")
            for finding in findings:
                lines.append(f"  {finding.name}: {finding.what}")
                lines += [f"      {place}" for place in finding.places[:3]]
                lines += [f"      {line}" for line in finding.diff.splitlines()]
        lines.append(f"unchanged: {len(self.unchanged)}")
        lines += [f"  {name}" for name in self.unchanged if verbose]
        return "\n".join(lines)


class Contract:
    """What our packages use of a vLLM, compared with what was reviewed.

    Args:
        vllm: The release.
        against: A release that has all that is used, such as the installed one.
        tree: Folder with our packages' folders, and with mypy's caches below it.
        reviewed: Records of the releases that were reviewed.
        by_hand: Include the uses listed by hand.
    """

    def __init__(
        self,
        vllm: Release,
        against: Release,
        tree: Path,
        reviewed: Reviewed,
        by_hand: bool = True,
    ) -> None:
        self.vllm, self.reviewed = vllm, reviewed
        self.uses, found = _complete(tree, vllm.place, vllm.version, by_hand)
        self.before, known = _complete(tree, against.place, against.version, by_hand)
        self.problems = found - known
        for name, use in self.before.items():
            if self.before.found(name):
                for place in use.places:
                    self.uses.use(name, place, use.needed)

    def report(self) -> Report:
        report = Report(self.vllm.version)
        reviewed = self.vllm.version in self.reviewed.requires
        for name, use in sorted(self.uses.items()):
            places = sorted(use.places)
            known = self.reviewed.symbols.get(name, {})
            found = self.uses.found(name)
            if found is None:
                owner = name.rpartition(".")[0]
                if owner in self.uses and self.uses.found(owner) is None:
                    continue
                had = known or self.before.found(name)
                if use.needed and (
                    self.vllm.version in known or (had and not reviewed)
                ):
                    report.breaking.append(Finding(name, "is missing", places))
            elif self._digest(found) in known.values():
                report.unchanged.append(name)
            else:
                what = "has changed" if known else "was not reviewed"
                report.behavioural.append(Finding(name, what, places, self._diff(name)))
        lacking = {place for finding in report.breaking for place in finding.places}
        for problem in sorted(self.problems):
            path, _, what = problem.partition(": error: ")
            package, _, file = path.partition("/")
            place = f"{OURS[package]}/{file}"
            if place not in lacking:
                report.breaking.append(Finding(place, what))
        for name, bounds in sorted(self.vllm.requires.items()):
            known = {r[name] for r in self.reviewed.requires.values() if name in r}
            if bounds not in known:
                were = " or ".join(sorted(known)) or "nothing"
                report.dependencies.append(Finding(name, f"{bounds}, was {were}"))
        return report

    def accept(self, names: list[str] | None = None) -> None:
        """Record bodies as reviewed.

        Args:
            names: What was reviewed. By default everything that is used; records of
                this release that are no longer used are then dropped.
        """
        version, symbols = self.vllm.version, self.reviewed.symbols
        if names is None:
            self.reviewed.requires[version] = self.vllm.requires
            for known in symbols.values():
                known.pop(version, None)
        for name in self.uses if names is None else names:
            if found := self.uses.found(name):
                symbols.setdefault(name, {})[version] = self._digest(found)
        self.reviewed.symbols = {n: known for n, known in symbols.items() if known}

    def _digest(self, found: griffe.Object) -> str:
        return digest(self.uses.sources.node(found))

    def _diff(self, name: str) -> str:
        texts = []
        for uses in (self.before, self.uses):
            found = uses.found(name)
            texts.append(_shown(uses.sources.node(found)) if found else [])
        return "\n".join(difflib.unified_diff(*texts, "old", "new", lineterm="", n=2))


@cache
def _complete(
    tree: Path, vllm: Path, version: str, by_hand: bool
) -> tuple[Uses, set[str]]:
    """All uses, with those that take types to find, and what mypy criticises."""
    uses = Uses(tree, vllm, by_hand)
    mypys = tree / "build" / "contract" / version
    files = uses.files()
    check(files, vllm, mypys)  # so that the next run keeps no types of vLLM's own files
    result = check(files, vllm, mypys, keep_types=True)
    for name, path, line in used_members(result, files):
        uses.use(name, f"{path}:{line}")
    return uses, problems(result)


def digest(node: Node | None) -> str:
    """A digest of a function's signature and body, of a class's bases and decorators,
    or of a field's declaration. Anything else gets ``-``: only its existence counts."""
    if node is None:
        return "-"
    if isinstance(node, ast.ClassDef):
        node = ast.Tuple([*node.bases, *node.decorator_list])
    return hashlib.sha256(_canonical(node).encode()).hexdigest()[:12]


def _canonical(node: object) -> str:
    """A syntax tree as text that is the same on all versions of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, Function | ast.ClassDef):
            value = _without_docstring(node)
        if value not in (None, []) and name not in ("ctx", "kind", "type_comment"):
            parts.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


def _without_docstring(node: Function | ast.ClassDef) -> list[ast.stmt]:
    has = ast.get_docstring(node, clean=False) is not None
    return node.body[has:]


def _shown(node: Node | None) -> list[str]:
    """The source that `digest` covers."""
    if isinstance(node, Function | ast.ClassDef):
        node = copy.copy(node)
        inside = _without_docstring(node) if isinstance(node, Function) else []
        node.body = inside or [ast.Expr(ast.Constant(...))]
    return ast.unparse(node).splitlines() if node else []
