#!/usr/bin/env python3
"""Check what our packages use of vLLM against a release, without importing it.

    python tools/vllm_contract.py                          # each release served
    python tools/vllm_contract.py 0.33 vllm-0.34.0.whl     # releases, wheels, folders
    python tools/vllm_contract.py vllm-0.34.0.whl --against 0.33
    python tools/vllm_contract.py vllm-0.34.0.whl --accept-all

Exits with status 0 if all is well, 1 if something breaks or was not reviewed, and 2
for wrong arguments. See docs/contract.md.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from contract.report import Contract, Release, Reviewed, release
from contract.uses import OURS
from vllm_nemotron_vl.config.nemotron_vl_names import TESTED_VLLM

ROOT = Path(__file__).parents[1]
INSTALLED = find_spec("vllm").submodule_search_locations[0]
REVIEWED = ROOT / "tools" / "vllm_contract.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vllm", nargs="*", help="release, wheel or folder")
    parser.add_argument("--tree", type=Path, default=ROOT,
                        help="folder with vllm/ and nemotron_vl/")  # fmt: skip
    parser.add_argument("--reviewed", type=Path, default=REVIEWED,
                        help="file that records what was reviewed")  # fmt: skip
    parser.add_argument("--no-table", action="store_true",
                        help="leave out the uses listed by hand")  # fmt: skip
    parser.add_argument("--against", metavar="VLLM", default=INSTALLED,
                        help="one that has all that is used")  # fmt: skip
    accepted = parser.add_mutually_exclusive_group()
    accepted.add_argument("--accept", nargs="+", metavar="NAME",
                          help="record these names as reviewed")  # fmt: skip
    accepted.add_argument("--accept-all", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="list unchanged names")
    parser.add_argument("--json", action="store_true", help="for scripts")
    args = parser.parse_args(arguments)

    reviewed = Reviewed(args.reviewed)
    try:
        releases = [find(name) for name in args.vllm or served()]
        against = find(args.against)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        parser.error(str(error))
    failed = False
    for vllm in releases:
        contract = Contract(vllm, against, args.tree, reviewed, not args.no_table)
        if args.accept or args.accept_all:
            if unknown := set(args.accept or ()) - contract.uses.keys():
                parser.error(f"not used: {', '.join(sorted(unknown))}")
            contract.accept(args.accept)
            reviewed.write()
        report = contract.report()
        print(report.json() if args.json else report.text(args.verbose), flush=True)
        failed |= report.failed
    for mark in stale_marks(args.tree, TESTED_VLLM[0]):
        print(mark, file=sys.stderr)
        failed = True
    return int(failed)


def served() -> list[str]:
    """The minor releases that are served, such as ``0.32``."""
    (major, first), (_, end) = TESTED_VLLM
    return [f"{major}.{minor}" for minor in range(first, end)]


def find(name: str) -> Release:
    """Read a release, given its number, wheel or folder."""
    if re.fullmatch(r"\d+\.\d+", name):
        command = [ROOT / "tools" / "vllm_source.sh", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        name = done.stdout.strip()
    return release(Path(name))


def stale_marks(tree: Path, oldest: tuple[int, ...]) -> Iterator[str]:
    """Comments ``# vLLM < X.Y`` on code that no release served needs any longer.

    Args:
        tree: Folder with our packages' folders.
        oldest: The oldest release served, such as ``(0, 31)``.
    """
    for file in sorted(
        f for ours in OURS.values() for f in (tree / ours).rglob("*.py")
    ):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            for found in re.finditer(r"#.*?vLLM < (\d+)\.(\d+)", line):
                if tuple(map(int, found.groups())) <= oldest:
                    yield (
                        f"{file}:{number}: {found[0]!r} fits no release served; "
                        f"the oldest is {'.'.join(map(str, oldest))}."
                    )


if __name__ == "__main__":
    sys.exit(main())
