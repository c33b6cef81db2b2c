# SPDX-License-Identifier: Apache-2.0
"""The command ``nemotron-vl``."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from vllm_nemotron_vl.config.nemotron_vl_names import plugin_version

from .printable import printable, show

# Only running a command may import PyTorch, transformers and vLLM, which takes seconds;
# parsing its arguments does not.
COMMANDS = (
    "demo",
    "doctor",
    "export",
    "find",
    "index",
    "inspect",
    "make-checkpoint",
    "probe",
    "read",
    "tiles",
    "verify",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; user errors give 2."""
    if argv is None:  # a program, in a folder that may hold a json.py of a stranger
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # of the processes it starts
        argv = sys.argv[1:]
    parser = _Parser(
        prog="nemotron-vl",
        description="Tools for serving Llama-3.1-Nemotron-Nano-VL with vLLM.",
    )
    parser.add_argument("--version", action="version", version=plugin_version())
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in {*COMMANDS} & {*argv[:1]} or COMMANDS:
        module = import_module(f".commands.{command.replace('-', '_')}", __package__)
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, RuntimeError, ValueError) as error:
        show(f"nemotron-vl: {error}", sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
