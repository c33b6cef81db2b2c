# SPDX-License-Identifier: Apache-2.0
"""Options of ``nemotron-vl inspect`` for the capacity of a load, and its text."""

import argparse
import dataclasses
from typing import Any

from .arguments import amount, number
from .capacity_data import read_data
from .capacity_engine import Assumptions

_BUSIEST = 0.8  # above, p99 is not even roughly right


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, with the defaults of `Assumptions`."""
    front_ends, gpus = read_data()
    assumed = Assumptions()
    group = parser.add_argument_group(
        "capacity",
        "API servers, encoders and GPUs for a load, computed from published peaks "
        "(docs/capacity.md). Give the first two options.",
    )

    def add(
        option: str, kind: Any, default: Any, text: str, metavar: str = "N"
    ) -> None:
        group.add_argument(
            option,
            type=kind,
            default=default,
            metavar=metavar,
            help=text if default is None else f"{text} (default: {default:g})",
        )

    add("--pages-per-second", amount(), None, "the load")
    group.add_argument("--gpu", choices=gpus, help="kind of GPU")
    group.add_argument(
        "--cpu",
        choices=front_ends,
        default=next(iter(front_ends)),
        help="kind of CPU of the API servers (default: %(default)s)",
    )
    add(
        "--page-cpu-ms",
        amount(),
        None,
        "milliseconds of a page in the API server, as measured on your CPU",
        "MS",
    )
    add("--tiles", number(), None, "tiles of a page (default: of the largest image)")
    add("--question-tokens", number(), assumed.question_tokens, "text of the prompt")
    add("--answer-tokens", number(), assumed.answer_tokens, "length of an answer")
    add(
        "--compute-share",
        amount(1),
        assumed.compute_share,
        "share of the GPU's dense peak that is reached",
    )
    add(
        "--bandwidth-share",
        amount(1),
        assumed.bandwidth_share,
        "share of its peak bandwidth that is reached",
    )
    add(
        "--utilisation",
        amount(_BUSIEST),
        assumed.utilisation,
        f"share of its most that each layer is asked for, up to {_BUSIEST:g}",
    )
    add(
        "--gpu-memory-utilization",
        amount(1),
        assumed.gpu_memory_utilization,
        "as of vLLM",
    )
    add("--network-gbit", amount(), assumed.network_gbit, "Gbit/s of a network link")
    group.add_argument(
        "--fp8",
        action="store_true",
        help="linear layers of the language model compute in FP8",
    )


def plan_of(args: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any] | None:
    """The plan that the options ask for, if they do.

    Args:
        args: With the options.
        report: What `inspection.inspect` returns.

    Raises:
        ValueError: Only one of the two necessary options is given, or as of
            `capacity.plan`.
    """
    if args.pages_per_second is None and args.gpu is None:
        return None
    if args.pages_per_second is None or args.gpu is None:
        raise ValueError("Give both --pages-per-second and --gpu.")
    from .capacity import plan

    front_ends, gpus = read_data()
    front_end = front_ends[args.cpu]
    if args.page_cpu_ms:
        front_end = dataclasses.replace(front_end, ours_ms=args.page_cpu_ms)
    names = (field.name for field in dataclasses.fields(Assumptions))
    assumed = Assumptions(**{n: getattr(args, n) for n in names if n in args})
    return plan(
        report, args.pages_per_second, gpus[args.gpu], front_end, assumed, args.tiles
    )


def describe_plan(plan: dict[str, Any]) -> list[str]:
    """Lines of text."""
    page, assumed = plan["page"], plan["assumptions"]
    lines = [
        f"{plan['pages_per_second']:g} pages/s on {plan['gpu']}, computed on paper",
        f"A page: {page['tiles']} tiles, {page['prompt_tokens']:,} tokens of prompt, "
        f"{assumed['answer_tokens']} of answer, {page['operations'] / 1e12:.3g} TFLOP "
        "until the first token",
        "",
        f"{'':<28}{'in-tree':>14}{'ours':>14}{'encoders apart':>16}",
    ]
    rows = {
        "API servers, a core each": lambda side: f"{side['api_servers']['units']:,}",
        "GPUs for encoders": lambda side: f"{side['encoders']['units']:,}",
        "other GPUs": lambda side: f"{side['gpus']['units']:,}",
        "first token, p99 up to": lambda side: f"{side['first_token_p99']:.2f} s",
        "requests": lambda side: gbit(side["request_bytes_per_second"]),
        "tiles to the engines": lambda side: gbit(side["tile_bytes_per_second"]),
        "embeddings": lambda side: gbit(side["embedding_bytes_per_second"]),
    }
    for title, cell in rows.items():
        cells = []
        for side in ("in_tree", "ours", "split"):
            try:
                cells.append(cell(plan[side]))
            except KeyError:  # only encoders apart have it
                cells.append("-")
        lines.append(f"{title:<28}{cells[0]:>14}{cells[1]:>14}{cells[2]:>16}")
    lines += ["", "One of each saturates at"]
    lines += [f"  {name:<26}{most:>14,.1f} pages/s" for name, most in most_pages(plan)]
    values = ", ".join(f"{name} {value:g}" for name, value in assumed.items())
    front_end = plan["front_end"]
    return [
        *lines,
        "",
        f"Measured in an API server on {front_end['title']}: {front_end['page']} takes "
        f"{front_end['in_tree_ms']:g} ms in-tree, {front_end['ours_ms']:g} ms ours",
        f"Assumed: {values}",
    ]


def most_pages(plan: dict[str, Any]) -> list[tuple[str, float]]:
    """Layers with the pages a second that saturate one unit, the lowest first."""
    return sorted(plan["most_pages"].items(), key=lambda item: item[1])


def gbit(bytes_per_second: float) -> str:
    """Bytes a second as Gbit/s, with two significant digits below 10."""
    rate = 8 * bytes_per_second / 1e9
    return f"{rate:,.0f} Gbit/s" if rate >= 10 else f"{rate:.2g} Gbit/s"
