#!/usr/bin/env python3
"""Makes docs/capacity.md.

    python tools/capacity_page.py          # prints it
    python tools/capacity_page.py --write  # into docs/capacity.md

The costs come from tools/capacity/costs.toml, the model from the published
sizes (tools/sizing_table.py), the simulation from tools/capacity/simulation.py, and the
sentences from tools/capacity/template.md.
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
from capacity.engine import Assumptions, make_engines, within
from capacity.planning import plan
from capacity.simulation import (
    Rule,
    fewest_prompts,
    fewest_requests,
    quantile,
    simulate_service,
)
from capacity.work import PageWork
from nemotron_vl.checkpoints.inspection import inspect

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
TEMPLATE = Path(__file__).with_name("capacity") / "template.md"
LOADS = (1, 100, 10_000)
NODE = 8  # GPUs of a host
KIND = "H100"  # of the GPU that the text speaks of
SIMULATED = 10_000  # pages
ASSUMED = Assumptions()


@dataclasses.dataclass(frozen=True)
class Case:
    """What engines serve: pages, of a checkpoint, after so long in an API server."""

    work: PageWork
    report: dict[str, Any]
    api_seconds: float
    assumed: Assumptions


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names, *lines = [list(map(str, row)) for row in (head, *rows)]
    first, *others = [f"| {' | '.join(line)} |" for line in (names, *lines)]
    return "\n".join([first, "|---" * len(names) + "|", *others])


def most_pages(plan: dict[str, Any]) -> list[tuple[str, float]]:
    """Layers with the pages a second that saturate one unit, the lowest first."""
    return sorted(plan["most_pages"].items(), key=lambda item: item[1])


def gbit(bytes_per_second: float) -> str:
    """Bytes a second as Gbit/s, with two significant digits below 10."""
    rate = 8 * bytes_per_second / 1e9
    return f"{rate:,.0f} Gbit/s" if rate >= 10 else f"{rate:.2g} Gbit/s"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


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
    head = ("what", "MB a page", *(f"{load:,} pages/s" for load in LOADS))
    return table(
        head,
        (
            (name, f"{size / 1e6:.1f}", *(gbit(load * size) for load in LOADS))
            for name, size in rows.items()
        ),
    )


def gpu_table() -> str:
    rows = [
        (
            f"`{name}`",
            gpu.title,
            f"{gpu.bf16:,.0f}",
            f"{gpu.fp8:,.0f}" if gpu.fp8 else "-",
            f"{gpu.bandwidth:g}",
            f"{gpu.memory:g}",
            gpu.source,
        )
        for name, gpu in read_data()[1].items()
    ]
    head = ("name", "GPU", "TFLOP/s in bf16", "in fp8", "TB/s", "GB", "published in")
    return table(head, rows)


def rate_table(plans: dict[str, dict[str, Any]]) -> str:
    layers = ("engine", "encoder of its own", "engine without encoder")
    head = ("GPU", *layers)
    return table(
        head,
        (
            (kind, *(f"{found['most_pages'][layer]:.2f}" for layer in layers))
            for kind, found in plans.items()
        ),
    )


def load_table(plans: dict[str, dict[str, Any]]) -> str:
    rows = []
    for kind, found in plans.items():
        in_tree, ours, split = found["in_tree"], found["ours"], found["split"]
        rows.append(
            (
                kind,
                f"{in_tree['api_servers']['units']:,}",
                f"{ours['api_servers']['units']:,}",
                f"{ours['gpus']['units']:,}",
                seconds(in_tree["first_token_p99"]),
                seconds(ours["first_token_p99"]),
                f"{split['api_servers']['units']:,}",
                f"{split['encoders']['units']:,} + {split['gpus']['units']:,}",
                seconds(split["first_token_p99"]),
            )
        )
    head = ("GPU", "API servers, in-tree", "ours", "GPUs", "p99, in-tree", "ours")
    head += ("apart: API servers", "encoders + other GPUs", "p99")
    return table(head, rows)


def assumption_table(rate: Callable[..., float]) -> str:
    """How many pages an engine takes if the assumptions differ."""
    shares = (0.2, 0.3, 0.4, 0.5, 0.6)
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


def compare(
    kind: str,
    utilisation: float,
    case: Case,
    rules: Iterable[tuple[Rule | None, bool]] = ((None, True),),
) -> list[str]:
    """p99 of the first token: by the formula, and simulated with each of the rules.

    Args:
        kind: Kind of the GPUs of a host, each with an engine.
        utilisation: Utilisation of the engines.
        case: What they serve.
        rules: Between engines (``None``: any), and whether answers vary in length.
    """
    gpu, seconds_of_page = read_data()[1][kind], case.api_seconds
    engine = make_engines(case.work, case.report, gpu, case.assumed).whole
    rate = NODE * utilisation * engine.most_pages
    servers = math.ceil(rate * seconds_of_page / case.assumed.utilisation)
    in_servers = within(seconds_of_page, rate / servers)
    found = [engine.first_token(rate / NODE) + in_servers]
    for rule, vary in rules:
        times = simulate_service(
            engine,
            engines=NODE,
            rate=rate,
            prompt=case.work.prompt_tokens,
            budget=gpu.max_num_batched_tokens,
            api_servers=servers,
            api_seconds=seconds_of_page,
            rule=rule,
            vary=vary,
            pages=SIMULATED,
            seed=1,
        )
        found.append(quantile(times, 0.99))
    return [seconds(value) for value in found]


def rule_table(case: Case) -> str:
    rules = [
        (None, True),
        (fewest_requests, True),
        (fewest_requests, False),
        (fewest_prompts, True),
    ]
    head = ("utilisation", "formula", "to any engine", "fewest requests")
    head += ("the same, equal answers", "fewest prompts")
    used = (0.5, 0.6, 0.7, 0.8)
    return table(head, ((f"{u:.0%}", *compare(KIND, u, case, rules)) for u in used))


def kind_table(case: Case) -> str:
    long = dataclasses.replace(case.assumed, answer_tokens=1024)
    rows = [(kind, ASSUMED.utilisation, case) for kind in read_data()[1]]
    rows.append(("L40S", 0.8, dataclasses.replace(case, assumed=long)))
    return table(
        ("GPU", "utilisation", "answer", "formula", "simulation"),
        (
            (kind, f"{used:.0%}", one.assumed.answer_tokens, *compare(kind, used, one))
            for kind, used, one in rows
        ),
    )


def page() -> str:
    front_ends, gpus = read_data()
    front_end = next(iter(front_ends.values()))
    with tempfile.TemporaryDirectory() as folder:
        sizing_table.write_checkpoint(Path(folder, "published"), "bfloat16")
        report = inspect(f"{folder}/published")

        def plan_for(load: float, kind: str, **changes: Any) -> dict[str, Any]:
            assumed = dataclasses.replace(ASSUMED, **changes)
            return plan(report, load, gpus[kind], front_end, assumed)

        plans = {load: {k: plan_for(load, k) for k in gpus} for load in LOADS}
        busy = ASSUMED.utilisation * NODE * plans[1][KIND]["most_pages"]["engine"]
        node = plan_for(busy, KIND)
        variants = assumption_table(
            lambda **changes: plan_for(1, KIND, **changes)["most_pages"]["engine"]
        )
    one = plans[1][KIND]
    fields = [field.name for field in dataclasses.fields(PageWork)]
    work = PageWork(**{name: one["page"][name] for name in fields})
    most = one["most_pages"]
    in_tree, ours = (most[f"API server, {side}"] for side in ("in-tree", "ours"))
    case = Case(work, report, front_end.ours_ms / 1000, ASSUMED)
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
        "work": work_table(one["page"]),
        "bytes": bytes_table(one["page"]),
        "costs": table(head, measured),
        "gpus": gpu_table(),
        "rates": rate_table(plans[1]),
        "layers": table(
            ("one", "pages/s"), ((name, short(rate)) for name, rate in most_pages(one))
        ),
        "loads": "\n\n".join(
            f"**{load:,} page{'s' * (load > 1)} a second**\n\n{load_table(found)}"
            for load, found in plans.items()
        ),
        "variants": variants,
        "rules": rule_table(case),
        "kinds": kind_table(case),
        "tiles": one["page"]["tiles"],
        "prompt": f"{work.prompt_tokens:,}",
        "peak": gpus[KIND].title,
        "node_rate": f"{NODE * most['engine']:.0f}",
        "in_tree_gpus": f"{in_tree / most['engine']:.1f}",
        "ours_gpus": f"{ours / most['engine']:.1f}",
        "embeddings_ratio": f"{work.embedding_bytes / work.tile_bytes:.1f}",
        "node_in_tree": node["in_tree"]["api_servers"]["units"],
        "node_ours": node["ours"]["api_servers"]["units"],
        "encoder_share": f"{(work.tower + work.connector) / work.total:.0%}",
        "simulated": f"{SIMULATED:,}",
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
