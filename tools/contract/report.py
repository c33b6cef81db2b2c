"""Differences between a vLLM and the releases that were reviewed."""

import ast
import copy
import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

from contract.consumed import OURS, VLLM, Consumed, Use
from contract.sources import Sources, Symbol
from contract.trees import Function

_DEPENDENCIES = {
    "aiohttp", "compressed-tensors", "numba", "numpy", "pillow", "prometheus-client",
    "requests", "safetensors", "tokenizers", "torch", "torchvision", "transformers",
    "triton",
}  # fmt: skip
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
        with ZipFile(place) as wheel:
            names = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
            texts = [wheel.read(name).decode() for name in names]
            versions = wheel.read("vllm/_version.py").decode()
    else:
        if (place / "vllm" / "_version.py").is_file():
            place = place / "vllm"
        if not (place / "_version.py").is_file():
            raise ValueError(f"There is no vLLM in {place}: it has no _version.py.")
        versions = (place / "_version.py").read_text()
        beside = place.resolve().parent.glob("vllm*.dist-info/METADATA")
        texts = [
            file.read_text()
            for file in sorted(beside)
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
    version = re.search(r"version = '(\d+\.\d+\.\d+)", versions)
    return Release(place, version[1] if version else "unknown", requires)


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
        tree: Folder with our packages' folders.
        reviewed: Records of the releases that were reviewed.
        by_hand: Include the uses listed by hand.
    """

    def __init__(
        self, vllm: Release, tree: Path, reviewed: Reviewed, by_hand: bool = True
    ) -> None:
        self.vllm = vllm
        self.reviewed = reviewed
        self._tree, self._by_hand = tree, by_hand
        ours = {name: tree / folder for name, folder in OURS.items()}
        there = {name: folder for name, folder in ours.items() if folder.is_dir()}
        sources = Sources({**there, VLLM: vllm.place})
        self.uses = Consumed(sources, by_hand).uses

    def report(self, against: Release | None = None) -> Report:
        """Compare with the record.

        Args:
            against: Release to diff changed bodies against; by default no diffs.
        """
        report = Report(self.vllm.version)
        others = {}
        if against:
            others = Contract(against, self._tree, self.reviewed, self._by_hand).uses
        for name, use in sorted(self.uses.items()):
            places = sorted(use.places)
            for problem in sorted(use.problems):
                report.breaking.append(Finding(name, problem))
            known = self.reviewed.symbols.get(name, {})
            if use.found is None:
                if use.certain or (known and use.needed):
                    report.breaking.append(Finding(name, "is missing", places))
                continue
            if digest(use.found) in known.values():
                report.unchanged.append(name)
                continue
            what = "has changed" if known else "was not reviewed"
            diff = _diff(others.get(name), use) if against else ""
            report.behavioural.append(Finding(name, what, places, diff))
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
            if found := self.uses[name].found:
                symbols.setdefault(name, {})[version] = digest(found)
        self.reviewed.symbols = {n: known for n, known in symbols.items() if known}


def digest(symbol: Symbol) -> str:
    """A digest of a function's signature and body, of a class's bases and decorators,
    or of a field's declaration. Anything else gets ``-``: only its existence counts."""
    node = symbol.node
    if isinstance(node, ast.ClassDef):
        node = ast.Tuple([*node.bases, *node.decorator_list])
    elif not isinstance(node, Function) and (
        not isinstance(node, ast.AnnAssign) or symbol.scope or "." not in symbol.name
    ):
        return "-"
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


def _diff(old: Use | None, new: Use) -> str:
    lines = [_shown(use.found) if use and use.found else [] for use in (old, new)]
    return "\n".join(difflib.unified_diff(*lines, "old", "new", lineterm="", n=2))


def _shown(symbol: Symbol) -> list[str]:
    """The source that `digest` covers."""
    node = symbol.node
    if isinstance(node, Function):
        node = copy.copy(node)
        node.body = _without_docstring(node) or [ast.Pass()]
    elif isinstance(node, ast.ClassDef):
        node = copy.copy(node)
        node.body = [ast.Expr(ast.Constant(...))]
    return ast.unparse(node).splitlines() if node else []
