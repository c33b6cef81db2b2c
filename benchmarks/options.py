"""The options that all benchmarks have."""

import argparse


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--quick`` and ``--json``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="take under a minute")
    parser.add_argument("--json", action="store_true", help="figures in the last line")
    return parser
