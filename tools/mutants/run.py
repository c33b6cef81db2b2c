#!/usr/bin/env python3
"""Count which mutants of the core the tests notice; see docs/mutants.md.

Run it with tools/mutants.sh. It goes on with the session in build/mutants.
"""

import argparse
import ast
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from choice import PARTS, annotations, import_graph, modules, shuffled, tests_of
from page import outcome_of, write_page
from working import prepare, tested, timed

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutants"
SETTINGS, SESSION = BUILD / "session.json", BUILD / "session.sqlite"
SECONDS = BUILD / "seconds.json"  # that each test file takes
MET = BUILD / "met.json"  # the test files that the mutants of each module have met

_AGAIN = "again: "  # what the tests said of a mutant that lives
_MOST_OF_A_MUTANT = 1.5  # of the most time of a test file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=39)
    parser.add_argument("--sample", type=int, default=300, help="of each part")
    parser.add_argument("--module", action="append", help="only of this file")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--most",
        type=float,
        default=40,
        help="seconds; slower test files are left out: most of them start engines",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="try those that live with the tests that they have not met",
    )
    parser.add_argument(
        "--tests",
        metavar="COMMIT",
        help="with --again: the tests of this commit, such as HEAD; those of its files "
        "that are new or have changed are met, too",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/mutants.md")
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes
    sys.path.append(str(BUILD / "site"))  # behind this environment's own packages
    settings = {"seed": args.seed, "sample": args.sample, "modules": args.module}
    if not SESSION.exists():
        settings["commit"] = _git(ROOT, "rev-parse", "HEAD")
    else:
        stored = json.loads(SETTINGS.read_text())
        if any(stored[name] != value for name, value in settings.items()):
            parser.error(f"{BUILD} has a session with {stored}: delete it, or go on")
        settings = stored
    trees = [BUILD / f"tree-{number}" for number in range(args.workers)]
    for tree in trees:
        _copy(tree, settings["commit"])
    if args.tests:
        settings["tests"] = _take_tests(trees, settings["commit"], args.tests)
        SETTINGS.write_text(json.dumps(settings))

    from cosmic_ray.work_db import use_db

    if not SESSION.exists():
        _begin(trees[0], settings)
    with use_db(SESSION) as session:
        pending = session.pending_work_items
        if args.again:
            pending = _living(session, anew=bool(args.tests))
        print(
            f"{len(pending)} of {session.num_work_items} mutants are left", flush=True
        )
        if pending and args.minutes > 0:
            _run(session, pending, trees, args.most, ends, args.again)
        results = session.completed_work_items
        if args.write:
            left = session.num_work_items - len(results)
            write_page(PARTS, settings, results, left, _read(SECONDS))
        for item, result in sorted(results, key=lambda r: r[1].output or ""):
            (mutation,) = item.mutations
            outcome = result.test_outcome or result.worker_outcome
            print(outcome.value, mutation.module_path, mutation.operator_name)
            print(f"  {mutation.start_pos} {result.output}")


def _git(tree: Path, *args: str) -> str:
    command = ["git", "-C", str(tree), *args]
    return subprocess.check_output(command, text=True).strip()


def _copy(tree: Path, commit: str) -> None:
    """A copy of the repository at a commit; what a killed run left is undone."""
    if not tree.exists():
        _git(ROOT, "clone", "--quiet", "--no-checkout", ".", str(tree))
    _git(tree, "fetch", "--quiet", "origin", commit)
    _git(tree, "checkout", "--quiet", "--force", commit)


def _begin(tree: Path, settings: dict[str, Any]) -> None:
    """Choose the mutants of a session."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import use_db

    os.chdir(tree)
    part_of = {
        module: part
        for part in PARTS
        for module in modules(tree, part)
        if module in (settings["modules"] or [module])
    }
    ignored = {m: annotations(Path(m).read_text()) for m in part_of}
    mutants: dict[str, list] = {part: [] for part in PARTS}
    whole, begun = BUILD / "all.sqlite", BUILD / "begun.sqlite"
    begun.unlink(missing_ok=True)
    with use_db(whole) as everything, use_db(begun) as session:
        init(map(Path, part_of), everything, {})
        items = {item.job_id: item for item in everything.work_items}
        for name, item in items.items():
            (m,) = item.mutations
            module = str(m.module_path)
            if any(a <= m.start_pos and m.end_pos <= z for a, z in ignored[module]):
                continue
            place = module, m.start_pos, m.end_pos
            mutant = m.operator_name, m.occurrence, name
            mutants[part_of[module]].append((place, mutant))
        for part in PARTS:
            chosen = shuffled(mutants[part], settings["seed"])
            found = filter(_is_python, (items[name] for _, (*_, name) in chosen))
            session.add_work_items(itertools.islice(found, settings["sample"]))
    SECONDS.unlink(missing_ok=True)
    MET.unlink(missing_ok=True)
    SETTINGS.write_text(json.dumps(settings))
    begun.rename(SESSION)


def _is_python(item: Any) -> bool:
    """cosmic-ray takes the stars of ``{**a}`` for a power, for example."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    (mutation,) = item.mutations
    operator = get_operator(mutation.operator_name)()
    try:
        source = mutation.module_path.read_text()
        ast.parse(mutate_code(source, operator, mutation.occurrence))
    except SyntaxError:
        return False
    return True


def _take_tests(trees: list[Path], commit: str, tests: str) -> str:
    """Put the tests of another commit into copies of the repository; its name."""
    tests = _git(ROOT, "rev-parse", tests)
    for tree in trees:
        _git(tree, "fetch", "--quiet", "origin", tests)
        _git(tree, "checkout", "--quiet", tests, "--", "tests")
    changed = {*_git(ROOT, "diff", "--name-only", commit, tests, "--", "tests").split()}
    seconds, met = _read(SECONDS), _read(MET)
    for name in changed & seconds.keys():
        del seconds[name]
    SECONDS.write_text(json.dumps(seconds))
    MET.write_text(json.dumps({m: [*({*f} - changed)] for m, f in met.items()}))
    return tests


def _living(session: Any, anew: bool) -> list[Any]:
    """The mutants that no test has noticed, and that were not tried again.

    Args:
        session: Of cosmic-ray.
        anew: With those that were.
    """
    return [
        item
        for item, result in session.completed_work_items
        if outcome_of(result, "", {}) in ("survived", "no test")
        and (anew or not (result.output or "").startswith(_AGAIN))
    ]


def _run(
    session: Any,
    pending: Iterable[Any],
    trees: list[Path],
    most: float,
    ends: float,
    again: bool,
) -> None:
    """Try mutants, with the nearest tests or, again, with others."""
    import attrs
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    graph = import_graph(trees[0])
    mutated = {str(item.mutations[0].module_path) for item in pending}
    seconds, met = _read(SECONDS), _read(MET)
    rings = {module: tests_of(module, graph) for module in mutated}
    for module, found in rings.items():
        others = [[n for n in ring if n not in met.get(module, ())] for ring in found]
        rings[module] = others if again else found[:1]
    tests = {module: list(itertools.chain(*ring)) for module, ring in rings.items()}
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for tree in trees:
        queue.put(str(tree))
    with ProcessPoolExecutor(len(trees), context, prepare, (queue,)) as pool:
        unknown = sorted({t for named in tests.values() for t in named} - {*seconds})
        jobs = ((name, timed, ((name,), most)) for name in unknown)
        for name, (taken, said) in _results(pool, len(trees), jobs, ends):
            seconds[name] = taken
            SECONDS.write_text(json.dumps(seconds))
            print(f"{name}: {said}", flush=True)
        chosen = {
            module: _in_time(ring, seconds, _MOST_OF_A_MUTANT * most)
            for module, ring in rings.items()
        }
        if not again:
            MET.write_text(json.dumps(met | chosen))

        def mutants() -> Iterator[tuple[str, Callable, tuple]]:
            for item in pending:
                (mutation,) = item.mutations
                module = str(mutation.module_path)
                files = chosen[module]
                if files:
                    limit = 20 + 3 * sum(seconds[name] for name in files)
                    yield item.job_id, tested, (mutation, files, limit)
                elif not again and all(n in seconds for n in tests[module]):
                    nothing = WorkResult(worker_outcome=WorkerOutcome.NO_TEST)
                    session.set_result(item.job_id, nothing)

        for name, result in _results(pool, len(trees), mutants(), ends):
            if again and outcome_of(result, "", {}) == "survived":
                result = attrs.evolve(result, output=_AGAIN + result.output)
            session.set_result(name, result)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _in_time(
    rings: list[list[str]], seconds: dict[str, float | None], most: float
) -> tuple[str, ...]:
    """Of the test files that pass, as many as have time: the nearest, then the
    fastest first."""
    chosen, total = [], 0.0
    for ring in rings:
        for taken, name in sorted((seconds.get(n) or most + 1, n) for n in ring):
            if total + taken <= most:
                total += taken
                chosen.append(name)
    return tuple(chosen)


def _results(
    pool: ProcessPoolExecutor,
    at_once: int,
    jobs: Iterator[tuple[str, Callable, tuple]],
    ends: float,
) -> Iterator[tuple[str, Any]]:
    """Results by the names of the jobs. None begins after the end."""
    running: dict[Future, str] = {}
    while True:
        while len(running) < at_once and time.monotonic() < ends:
            job = next(jobs, None)
            if job is None:
                break
            name, function, args = job
            running[pool.submit(function, *args)] = name
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


if __name__ == "__main__":
    main()
