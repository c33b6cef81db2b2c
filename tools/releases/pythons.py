#!/usr/bin/env python3
"""Run the demo and the tests that need no engine on each Python that vLLM takes.

    make test-pythons
    make test-pythons PYTHONS="3.12 3.14"

A Python of a Debian suite runs in a bare Debian (``tools/debian.sh``), which takes root
and debootstrap. Others are those that ``uv python find`` finds. The rows of the table
replace those of the same Pythons in docs/releases.md.
"""

import argparse
import datetime
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from environments import ROOT
from matrix import parts, processor, read_report, replace_rows

# Debian 12, 13 and the next one. No Debian has 3.12.
SUITES = {"3.11": "bookworm", "3.12": None, "3.13": "trixie", "3.14": "testing"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="*", help=f"any of {', '.join(SUITES)}")
    args = parser.parse_args()
    if set(args.pythons) - set(SUITES):
        parser.error(f"vLLM takes {', '.join(SUITES)}")
    rows, failed = {}, False
    for name in args.pythons or SUITES:
        place = place_of(name)
        started = time.monotonic()
        passed, result = place.run() if place else (False, "no interpreter")
        failed |= not passed
        where = place.where if place else "nowhere"
        minutes = str(round((time.monotonic() - started) / 60))
        today = datetime.date.today().isoformat()
        cells = [f"Python {name}", where, result, minutes, processor(), today]
        rows[cells[0]] = f"| {' | '.join(cells)} |"
    print("\n".join(rows.values()))
    replace_rows(rows)
    sys.exit(failed)


@dataclass
class Place:
    """Where a Python runs: the project's folder, and what puts commands there."""

    where: str
    project: Path
    prefix: list[str]
    venv: str
    install: str

    def run(self) -> tuple[bool, str]:
        """Whether all went well, and what ran."""
        report = self.project / "build/without_an_engine.xml"
        report.unlink(missing_ok=True)
        if self._run(self.install):
            return False, "the installation failed"
        if self._run(f"{self.venv}/bin/nemotron-vl demo --out build/demo"):
            return False, "the demo failed"
        (_, arguments), *_ = parts("", "")
        status = self._run(
            f"{self.venv}/bin/python -m pytest -n 2 --dist loadfile "
            f"-p no:cacheprovider --junitxml=build/{report.name} {' '.join(arguments)}"
        )
        if not report.exists():
            return False, f"the demo; pytest ended with status {status}"
        tests = read_report(report)
        for test in tests.failed:
            print(f"failed: {test}")
        return status == 0, f"the demo; {tests}"

    def _run(self, command: str) -> int:
        """Its status. The Makefile's variables are those of the command, too."""
        return subprocess.call([*self.prefix, "bash", "-ec", command], cwd=ROOT)


def place_of(name: str) -> Place | None:
    suite = SUITES[name]
    if suite:
        return Place(
            where=f"Debian {suite}",
            project=ROOT / "build/debian" / suite / "root/project",
            prefix=["tools/debian.sh", suite],
            venv=".venv",
            install="make .venv/.installed",
        )
    command = [ROOT / ".venv/bin/uv", "python", "find", name]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if found.returncode:
        return None
    venv = f"build/pythons/{name}"
    return Place(
        where="an interpreter of its own",
        project=ROOT,
        prefix=[],
        venv=venv,
        install=f"{found.stdout.strip()} -m venv {venv}; tools/install.sh {venv}",
    )


if __name__ == "__main__":
    main()
