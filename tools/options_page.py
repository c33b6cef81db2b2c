"""Write the section of docs/limits.md about options that are used together.

    python tools/options_page.py --write

It is made from the table of the tests, ``tests/support/options.py``.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The root is first: `tests/nemotron_vl` would hide the package.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.options import (  # noqa: E402
    OPTIONS,
    REFUSED,
    answered,
    four_ranks,
    pairs,
    rows,
)

PAGE = ROOT / "docs" / "limits.md"
BEGIN = "<!-- made by tools/options_page.py -->"
END = "<!-- end -->"

HEAD = """
## Options together

These options change how images are encoded, or who encodes them:

| option | set by |
|---|---|
"""

RULE = """
Each two of them give the reference's results, are values of one setting, or are refused
at start. `tests/vllm/models/multimodal/test_options.py` checks that no pair is left
out, and that these are refused:

| pair | the message says |
|---|---|
"""

ROWS = """
The other {count} pairs give the reference's tokens and log-probabilities (an engine
that only encodes: its embeddings), in engines with many options at once
(`tests/vllm/models/multimodal/generation/test_options.py`). Encoder graphs are
captured by vLLM's own manager, with a stand-in for the GPU's. Engines with Model Runner
V2 run Triton's interpreter. They and those of four ranks run in
`make test-releases`. Beside adapters on the tower, and beside encoder graphs with
encoder data parallel, the tile cache has no effect, and the log says so.

| engine | options |
|---|---|
"""


def section() -> str:
    """The section, from its heading to its last table."""
    lines = [HEAD.rstrip("\n")]
    lines += [f"| {option.title} | {option.given} |" for option in OPTIONS.values()]
    lines.append(RULE.rstrip("\n"))
    for pair in pairs():
        if said := REFUSED.get(pair):
            both = " and ".join(OPTIONS[x].title for x in OPTIONS if x in pair)
            lines.append(f"| {both} | {said} |")
    lines.append(ROWS.format(count=len(answered())).rstrip("\n"))
    for number, row in enumerate(rows(), 1):
        titles = ", ".join(OPTIONS[option].title for option in row)
        ranks = ", four ranks" if four_ranks(row) else ""
        lines.append(f"| {number}{ranks} | {titles} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/limits.md with the section as it should be."""
    before, _, rest = PAGE.read_text().partition(f"{BEGIN}\n")
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{section()}\n{END}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/limits.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(section())
