"""The page of a session, docs/mutants.md."""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mutants.md"
KNOWN = Path(__file__).with_name("known.toml")
MARKS = "<!-- session -->\n", "<!-- end of the session -->"

OUTCOMES = ("killed", "timed out", "survived", "equivalent", "no test")


def outcome_of(result: Any, name: str, equivalent: Mapping[str, str]) -> str:
    """One of `OUTCOMES`."""
    if result.worker_outcome == "no-test":
        return "no test"
    if result.output == "timeout":
        return "timed out"
    if result.test_outcome != "survived":
        return "killed"
    return "equivalent" if name in equivalent else "survived"


def name_of(module: str, diff: str) -> str:
    """Such as ``vllm/a.py: if a < b: -> if a <= b:``."""
    lines = [n for n in diff.splitlines() if not n.startswith(("---", "+++"))]
    old, new = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign))
        for sign in "-+"
    )
    return f"{module}: {old} -> {new}"


def report(
    parts: Mapping[str, str],
    settings: Mapping[str, Any],
    results: Iterable[tuple[Any, Any]],
    left: int,
    seconds: Mapping[str, float | None],
    known: Mapping[str, Mapping[str, str]],
) -> str:
    """What a session found, as Markdown.

    Args:
        parts: Folders by the names of the parts.
        settings: Seed, size of the sample, modules and commit.
        results: Items of work and their results.
        left: How many mutants have not been tried.
        seconds: Of each test file; ``None`` if it was too slow.
        known: Reasons for survivors by their names, ``equivalent`` and ``alive``.
    """
    counts = {part: Counter[str]() for part in parts}
    alive: dict[str, list[str]] = {"survived": [], "equivalent": [], "no test": []}
    for item, result in results:
        (mutation,) = item.mutations
        module = str(mutation.module_path)
        name = name_of(module, result.diff or "")
        outcome = outcome_of(result, name, known["equivalent"])
        part = next(p for p, folder in parts.items() if module.startswith(folder + "/"))
        counts[part][outcome] += 1
        if outcome == "no test":
            alive[outcome].append(f"- `{module}`")
        elif outcome in alive:
            reasons = known["equivalent"] | known["alive"]
            reason = reasons.get(name, "not looked at yet")
            file, _, change = name.partition(": ")
            alive[outcome].append(f"- `{file}`: ``{change}``: {reason}")
    chosen = settings["modules"]
    lines = [
        f"Commit {settings['commit'][:10]}, "
        + (f"tests of {settings['tests'][:10]}, " if "tests" in settings else "")
        + f"seed {settings['seed']}, at most "
        f"{settings['sample']} mutants of each part; {left} have not been tried. "
        + (f"A trial: only of `{'`, `'.join(chosen)}`." if chosen else ""),
        "",
        f"| part | mutants | {' | '.join(OUTCOMES)} | noticed |",
        "|---" * (len(OUTCOMES) + 3) + "|",
    ]
    for part, found in counts.items():
        total = found.total()
        noticed = found["killed"] + found["timed out"]
        share = noticed / max(1, total - found["equivalent"])
        cells = [part, total, *(found[o] for o in OUTCOMES), f"{share:.0%}"]
        if total:
            lines.append(f"| {' | '.join(map(str, cells))} |")
    for outcome, named in alive.items():
        if named:
            lines += ["", f"{outcome.capitalize()}:", "", *sorted(set(named))]
    slow = sorted(name for name, taken in seconds.items() if taken is None)
    if slow:
        lines += [
            "",
            "Left out, because they fail in a copy of the repository or are slow:",
            "",
        ]
        lines += [f"- `{name}`" for name in slow]
    return "\n".join(lines) + "\n"


def write_page(*session: Any) -> None:
    """Replace the part of the page that a session makes."""
    text = PAGE.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    found = report(*session, tomllib.loads(KNOWN.read_text()))
    PAGE.write_text(f"{before}{MARKS[0]}\n{found}\n{MARKS[1]}{after}")
