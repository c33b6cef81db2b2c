#!/usr/bin/env python3
"""Makes docs/capacity.md.

    python tools/capacity_page.py          # prints it
    python tools/capacity_page.py --write  # into docs/capacity.md

The costs come from tools/capacity/costs.toml, the model from the published sizes
(tools/sizing_table.py), and the sentences from tools/capacity/template.md.
"""

import argparse
import dataclasses
import math
import string
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sizing_table
from capacity.data import read_data
from capacity.engine import Assumptions
from capacity.planning import saturation
from nemotron_vl.checkpoints.inspection import inspect

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
TEMPLATE = Path(__file__).with_name("capacity") / "template.md"
LOAD = 100  # pages a second
NODE = 8  # GPUs of a host
KIND = "H100"  # of the GPU that the text speaks of
ASSUMED = Assumptions()


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names, *lines = [list(map(str, row)) for row in (head, *rows)]
    first, *others = [f"| {' | '.join(line)} |" for line in (names, *lines)]
    return "\n".join([first, "|---" * len(names) + "|", *others])


def short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def work_table(page: dict[str, Any]) -> str:
    parts = {
        "vision tower": page["tower"],
        "connector": page["connector"],
        "language model, prompt": page["prefill"],
        "its attention": page["prefill_attention"],
        "until the first token": page["operations"],
    }
    rows = [
        (name, f"{value / 1e12:.1f}", f"{value / page['operations']:.1%}")
        for name, value in parts.items()
    ]
    rows.append(("each token of the answer", f"{page['decode'] / 1e12:.3f}", ""))
    return table(("part", "TFLOP", "share"), rows)


def bytes_table(page: dict[str, Any]) -> str:
    rows = {
        "request, a JPEG in base64": page["request_bytes"],
        "tiles to the engine, ours (uint8)": page["tile_bytes"],
        "tiles to the engine, in-tree (float32)": page["in_tree_tile_bytes"],
        "embeddings from an encoder (16 bits)": page["embedding_bytes"],
    }
    return table(
        ("what", "MB a page", f"{LOAD} pages/s"),
        (
            (name, f"{size / 1e6:.1f}", f"{8 * LOAD * size / 1e9:.1f} Gbit/s")
            for name, size in rows.items()
        ),
    )


def gpu_table() -> str:
    rows = [
        (
            gpu.title,
            f"{gpu.bf16:,.0f}",
            f"{gpu.fp8:,.0f}",
            f"{gpu.bandwidth:g}",
            gpu.source,
        )
        for gpu in read_data()[1].values()
    ]
    head = ("GPU", "TFLOP/s in bf16", "in FP8", "TB/s", "published in")
    return table(head, rows)


def rate_table(
    found: dict[str, dict[str, float]], in_fp8: dict[str, dict[str, float]]
) -> str:
    layers = ("encoder of its own", "engine without encoder")
    rows = [
        (
            gpu.title,
            f"{found[kind]['engine']:.2f}",
            f"{in_fp8[kind]['engine']:.2f}",
            *(f"{found[kind][layer]:.2f}" for layer in layers),
        )
        for kind, gpu in read_data()[1].items()
    ]
    return table(("GPU", "engine", "engine, FP8", *layers), rows)


def assumption_table(rate: Callable[..., float]) -> str:
    """How many pages an engine takes if the assumptions differ."""
    shares = (0.2, 0.4, 0.6)
    answers = (1, 64, 256, 1024)
    rows = [
        (
            f"{share:g}",
            *(
                f"{rate(compute_share=share, answer_tokens=answer):.2f}"
                for answer in answers
            ),
        )
        for share in shares
    ]
    return table(
        (
            "share of the peak",
            *(f"{answer:,} token{'s' * (answer > 1)}" for answer in answers),
        ),
        rows,
    )


def page() -> str:
    front_ends, gpus = read_data()
    front_end = next(iter(front_ends.values()))
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for scheme in ("bfloat16", "int8"):  # FP8 has the bytes of INT8
            sizing_table.write_checkpoint(Path(folder, scheme), scheme)
            reports[scheme] = inspect(f"{folder}/{scheme}")

        def estimate(kind: str, scheme: str = "bfloat16", **changes: Any) -> Any:
            assumed = dataclasses.replace(ASSUMED, **changes)
            return saturation(reports[scheme], gpus[kind], front_end, assumed)

        rates = {kind: estimate(kind)["most_pages"] for kind in gpus}
        in_fp8 = {kind: estimate(kind, "int8", fp8=True)["most_pages"] for kind in gpus}
        variants = assumption_table(
            lambda **changes: estimate(KIND, **changes)["most_pages"]["engine"]
        )
        work = estimate(KIND)["page"]
    most = rates[KIND]
    encoder = work["tower"] + work["connector"]
    in_tree, ours = "API server, in-tree", "API server, ours"
    measured = [
        (
            entry.title,
            entry.page,
            f"{entry.in_tree_ms:g}",
            f"{entry.ours_ms:g}",
            f"{entry.in_tree_ms / entry.ours_ms:.1f}",
            entry.measured,
        )
        for entry in front_ends.values()
    ]
    head = ("CPU", "page", "in-tree [ms]", "ours [ms]", "ratio", "measured")
    parts = {
        "work": work_table(work),
        "bytes": bytes_table(work),
        "costs": table(head, measured),
        "gpus": gpu_table(),
        "rates": rate_table(rates, in_fp8),
        "layers": table(
            ("one", "pages/s"),
            ((name, short(most[name])) for name in sorted(most, key=most.get)),
        ),
        "variants": variants,
        "tiles": reports["bfloat16"]["largest_image"]["tiles"],
        "prompt": f"{work['prompt_tokens']:,}",
        "peak": gpus[KIND].title,
        "node_rate": f"{NODE * most['engine']:.0f}",
        "in_tree_gpus": f"{most[in_tree] / most['engine']:.1f}",
        "ours_gpus": f"{most[ours] / most['engine']:.1f}",
        "embeddings_ratio": f"{work['embedding_bytes'] / work['tile_bytes']:.1f}",
        "node_in_tree": math.ceil(NODE * most["engine"] / most[in_tree]),
        "node_ours": math.ceil(NODE * most["engine"] / most[ours]),
        "encoder_share": f"{encoder / work['operations']:.0%}",
    }
    parts |= {name: f"{v:g}" for name, v in dataclasses.asdict(ASSUMED).items()}
    return string.Template(TEMPLATE.read_text()).substitute(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/capacity.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())
