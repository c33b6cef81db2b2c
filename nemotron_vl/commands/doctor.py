# SPDX-License-Identifier: Apache-2.0
"""``nemotron-vl doctor``: check the installation and say what repairs it."""

import argparse
import json

from ..printable import show
from .diagnosis import PROBLEM, examine

_WIDTH = len("shared memory")  # the longest name of a check


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check the installation",
        description="Checks Python, vLLM, PyTorch, the plugin, the vllm command, "
        "threads, memory and folders. Prints what is wrong and the command that "
        "repairs it. Exits with 1 if something is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if not args.json:
        show("Most checks need vLLM: importing it takes 10 to 30 s.")
    findings = []
    for finding in examine():
        findings.append(finding)
        if not args.json:
            show(f"{finding.state:<8} {finding.what:<{_WIDTH}}  {finding.found}")
            if finding.fix:
                show(f"{'':<8} {'':<{_WIDTH}}  -> {finding.fix}")
    if args.json:
        show(json.dumps([finding._asdict() for finding in findings], indent=2))
    return 1 if any(finding.state == PROBLEM for finding in findings) else 0
