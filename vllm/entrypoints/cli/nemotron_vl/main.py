# SPDX-License-Identifier: Apache-2.0
"""The command ``nemotron-vl``."""

import argparse
import sys
from collections.abc import Sequence

from ....plugins.nemotron_vl import plugin_version
from . import make_checkpoint

_COMMANDS = (make_checkpoint,)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; user errors give 2."""
    parser = argparse.ArgumentParser(
        prog="nemotron-vl",
        description="Tools for serving Llama-3.1-Nemotron-Nano-VL with vLLM.",
    )
    parser.add_argument("--version", action="version", version=plugin_version())
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        print(f"nemotron-vl: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
