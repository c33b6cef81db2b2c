#!/usr/bin/env python3
"""Computes the table of docs/machines.md from the page's commands.

    python tools/machines_table.py          # prints it
    python tools/machines_table.py --write  # into docs/machines.md

A command follows a comment `<!-- machine NAME SCHEME -->`: a GPU of
tools/capacity/costs.toml or CPU, and a scheme of tools/sizing_table.py. Its options
decide how much memory vLLM takes.
"""

import argparse
import dataclasses
import re
import shlex
import tempfile
from pathlib import Path

import sizing_table
from capacity.data import read_data
from capacity.engine import GB, Assumptions, cache_bytes
from capacity_page import table
from nemotron_vl.checkpoints.inspection import inspect

PAGE = Path(__file__).parents[1] / "docs" / "machines.md"
COMMAND = re.compile(r"<!-- machine (\w+) (\w+) -->\n\n```bash\n(.*?)```", re.DOTALL)
ASSUMED = Assumptions()
SPACE = "VLLM_CPU_KVCACHE_SPACE="  # GiB of the KV cache on CPUs


def commands(text: str) -> list[tuple[str, str, list[str]]]:
    """Machine, scheme and words of each marked command."""
    found = COMMAND.findall(text.replace("\\\n", ""))
    return [(name, scheme, shlex.split(words)) for name, scheme, words in found]


def row(name: str, scheme: str, words: list[str], checkpoint: str) -> list[str]:
    def option(flag: str, default: str) -> str:
        return words[words.index(flag) + 1] if flag in words else default

    share = option("--gpu-memory-utilization", f"{ASSUMED.gpu_memory_utilization}")
    assumed = dataclasses.replace(ASSUMED, gpu_memory_utilization=float(share))
    report = inspect(
        checkpoint,
        tp=int(option("--tensor-parallel-size", "1")),
        encoder_data_parallel=option("--mm-encoder-tp-mode", "weights") == "data",
        dtype=option("--dtype", "bfloat16"),
    )
    weights = sum(part["rank_bytes"] for part in report["parts"].values())
    if name == "CPU":
        (space,) = (w.removeprefix(SPACE) for w in words if w.startswith(SPACE))
        title, cache = f"CPU, {report['dtype']}", int(space) * 2**30
        taken = weights + cache
    else:
        gpu = read_data()[1][name]
        title, cache = gpu.title, cache_bytes(gpu, weights, assumed)
        title += f", {report['tp']} ranks" if report["tp"] > 1 else ""
        taken = float(share) * gpu.gib * 2**30
    tokens = int(cache // report["kv_bytes_per_token"])
    page = report["largest_image"]["tokens"] + ASSUMED.question_tokens
    return [
        title,
        sizing_table.SCHEMES[scheme],
        f"{taken / GB:.1f}",
        f"{weights / GB:.1f}",
        f"{tokens:,}",
        f"{tokens // (page + ASSUMED.answer_tokens):,}",
    ]


def page() -> str:
    """The page with its table computed again."""
    text = PAGE.read_text()
    with tempfile.TemporaryDirectory() as folder:
        for scheme in sizing_table.SCHEMES:
            sizing_table.write_checkpoint(Path(folder, scheme), scheme)
        rows = [
            row(name, scheme, words, f"{folder}/{scheme}")
            for name, scheme, words in commands(text)
        ]
    head = ("each GPU, or CPU", "checkpoint", "GB that vLLM takes", "of them weights")
    computed = table((*head, "tokens of KV cache", "full pages at once"), rows)
    before, begin, rest = text.partition("<!-- computed -->")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{begin}\n\n{computed}\n\n{end}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/machines.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())
