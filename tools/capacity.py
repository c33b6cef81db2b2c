#!/usr/bin/env python3
"""Makes docs/capacity.md.

    python tools/capacity.py          # prints it
    python tools/capacity.py --write  # into docs/capacity.md

The costs come from vllm/assets/nemotron_vl_capacity.toml, the model from the published
sizes (tools/sizing_table.py), the simulation from tools/queue_simulation.py.
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sizing_table
from queue_simulation import (
    fewest_prompts,
    fewest_requests,
    quantile,
    simulate_service,
)

from vllm_nemotron_vl.entrypoints.nemotron_vl.capacity import plan
from vllm_nemotron_vl.entrypoints.nemotron_vl.capacity_data import read_data
from vllm_nemotron_vl.entrypoints.nemotron_vl.capacity_engine import (
    Assumptions,
    make_engines,
    within,
)
from vllm_nemotron_vl.entrypoints.nemotron_vl.capacity_options import gbit, most_pages
from vllm_nemotron_vl.entrypoints.nemotron_vl.inspection import inspect
from vllm_nemotron_vl.entrypoints.nemotron_vl.page_work import PageWork

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
LOADS = (1, 100, 10_000)
NODE = 8  # GPUs of a host
KIND = "H100"  # of the GPU that the text speaks of
SIMULATED = 20_000  # pages
ASSUMED = Assumptions()


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
        (name, f"{value / 1e12:.1f}", f"{value / page['operations']:.0%}")
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


def gpu_table(plans: dict[str, dict[str, Any]]) -> str:
    _, gpus = read_data()
    rows = [
        (
            f"`{name}`",
            gpu.title,
            f"{gpu.bf16:,.0f}",
            f"{gpu.fp8:,.0f}" if gpu.fp8 else "-",
            f"{gpu.bandwidth:g}",
            f"{gpu.memory:g}",
            *(
                f"{plans[name]['most_pages'][layer]:.2f}"
                for layer in ("engine", "encoder of its own", "engine without encoder")
            ),
            gpu.source,
        )
        for name, gpu in gpus.items()
    ]
    head = ("`--gpu`", "GPU", "TFLOP/s bf16", "fp8", "TB/s", "GB")
    head += ("pages/s", "encoder alone", "without encoder", "peaks published in")
    return table(head, rows)


def load_table(plans: dict[str, dict[str, Any]]) -> str:
    rows = []
    for found in plans.values():
        in_tree, ours, split = found["in_tree"], found["ours"], found["split"]
        rows.append(
            (
                found["gpu"],
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
        ("share of the peak", *(f"{answer:,} tokens" for answer in answers)), rows
    )


def simulation_table(
    work: PageWork, report: dict[str, Any], api_seconds: float
) -> str:
    gpu = read_data()[1][KIND]
    engine = make_engines(work, report, gpu, ASSUMED).whole
    rows = []
    for utilisation in (0.5, 0.6, 0.7, 0.8):
        rate = utilisation * engine.most_pages
        servers = math.ceil(NODE * rate * api_seconds / ASSUMED.utilisation)
        formula = engine.first_token(rate) + within(api_seconds, NODE * rate / servers)

        def simulate(engines=NODE, rule=None, vary=True, rate=rate, servers=servers):
            times = simulate_service(
                engine,
                engines=engines,
                rate=engines * rate,
                prompt=work.prompt_tokens,
                budget=gpu.max_num_batched_tokens,
                api_servers=servers,
                api_seconds=api_seconds,
                rule=rule,
                vary=vary,
                pages=SIMULATED,
                seed=1,
            )
            return seconds(quantile(times, 0.99))

        rows.append(
            (
                f"{utilisation:.0%}",
                seconds(formula),
                simulate(),
                simulate(rule=fewest_requests),
                simulate(rule=fewest_requests, vary=False),
                simulate(rule=fewest_prompts),
            )
        )
    head = ("utilisation", "formula", "to any engine", "fewest requests")
    head += ("the same, equal answers", "fewest prompts")
    return table(head, rows)


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
        variants = assumption_table(
            lambda **changes: plan_for(1, KIND, **changes)["most_pages"]["engine"]
        )
    one = plans[1][KIND]
    fields = [field.name for field in dataclasses.fields(PageWork)]
    work = PageWork(**{name: one["page"][name] for name in fields})
    most = one["most_pages"]
    in_tree, ours = most["API server, in-tree"], most["API server, ours"]
    measured = [
        (entry.title, entry.page, f"{entry.in_tree_ms:g}", f"{entry.ours_ms:g}")
        + (f"{entry.in_tree_ms / entry.ours_ms:.1f}", entry.measured)
        for entry in front_ends.values()
    ]
    head = ("CPU", "page", "in-tree [ms]", "ours [ms]", "ratio", "measured")
    parts = {
        "WORK": work_table(one["page"]),
        "BYTES": bytes_table(one["page"]),
        "COSTS": table(head, measured),
        "GPUS": gpu_table(plans[1]),
        "LAYERS": table(
            ("one", "pages/s"), ((name, short(rate)) for name, rate in most_pages(one))
        ),
        "LOADS": "\n\n".join(
            f"**{load:,} page{'s' * (load > 1)} a second**\n\n{load_table(found)}"
            for load, found in plans.items()
        ),
        "VARIANTS": variants,
        "SIMULATION": simulation_table(work, report, front_end.ours_ms / 1000),
        "TILES": one["page"]["tiles"],
        "PROMPT": f"{work.prompt_tokens:,}",
        "PEAK": gpus[KIND].title,
        "NODE_RATE": f"{NODE * most['engine']:.0f}",
        "IN_TREE_RATE": f"{in_tree:.0f}",
        "OURS_RATE": f"{ours:.0f}",
        "IN_TREE_GPUS": f"{in_tree / most['engine']:.1f}",
        "OURS_GPUS": f"{ours / most['engine']:.1f}",
        "EMBEDDINGS_RATIO": f"{work.embedding_bytes / work.tile_bytes:.1f}",
        "ENCODER_SHARE": f"{(work.tower + work.connector) / work.total:.0%}",
        "SIMULATED": f"{SIMULATED:,}",
    }
    parts |= {name.upper(): v for name, v in dataclasses.asdict(ASSUMED).items()}
    text = TEXT
    for name in sorted(parts, key=len, reverse=True):
        text = text.replace(f"@{name}@", str(parts[name]))
    return text


TEXT = """\
# How many machines a load takes

`tools/capacity.py` makes this page from measured costs of the front end, published peaks
of GPUs, and the operations that the model's configuration implies. **Nothing here was
measured on a GPU.** Take the ratios and the order of the layers from this page, and
measure one engine of your own before you buy many.

For your own case:

<!-- run -->

```bash
.venv/bin/nemotron-vl inspect vllm/assets/nemotron_vl_tiny --pages-per-second 100 --gpu H100
```

With `nvidia/Llama-3.1-Nemotron-Nano-VL-8B-V1` in place of the tiny checkpoint it prints the
figures of this page. Each assumption has an option ([settings.md](settings.md)), and
`--json` prints JSON. `--page-cpu-ms` takes what your own CPU needs for a page, and
`--compute-share` what your own GPU reaches.

## What a page takes

A full page has @TILES@ tiles. With a question of @QUESTION_TOKENS@ tokens (chat template
included) the prompt has @PROMPT@ tokens. A product of matrices counts two operations for each
multiplication; the attention of the prompt is causal.

@WORK@

What moves, and what a load needs of the network or of the links within a host:

@BYTES@

Embeddings take @EMBEDDINGS_RATIO@ times the bytes of the uint8 tiles they were made of. A
server that only renders images (`vllm launch render`) sends tiles, in base64 a third more.

What a page costs in the API server, from the bytes of the file to the engine's tensors, in
milliseconds of one thread:

@COSTS@

## Where each layer saturates

One of each, with GPUs of the kind @PEAK@ and a network of @NETWORK_GBIT@ Gbit/s:

@LAYERS@

Eight of these GPUs take @NODE_RATE@ pages a second. One API server with in-tree processing
feeds @IN_TREE_GPUS@ of them, and with ours @OURS_GPUS@. vLLM processes images on one thread of
each API server, so `--api-server-count` is the number of cores. The encoder is @ENCODER_SHARE@
of the operations until the first token.

Pages a second of one GPU; the last three columns with numbers are an engine that does
everything, one that only encodes, and one that gets embeddings:

@GPUS@

## Loads

Each layer is asked for at most @UTILISATION@ of what it could do. "p99" is an upper estimate of
the time to the first token of 99 % of the pages, with pages sent to any server and engine. "apart"
has encoders on GPUs of their own; both its encoders and its language models have API servers
that process each page, as in vLLM's example of disaggregated encoders. In-tree and ours are taken
to be equally fast on the GPU, since only the front end was compared.

@LOADS@

Encoders of their own need about as many GPUs in all, because the operations are the same. What
they change is where the time goes: a long prompt no longer delays the encoder, and each part gets
the GPU that suits it.

## What the estimate depends on

Pages a second of one @PEAK@ by the share of the dense peak that is reached, and by the length of
the answer:

@VARIANTS@

## First token: formula and simulation

API servers and engines are queues with random (Poisson) arrivals that take page by page
(M/D/1); p99 follows from Franx' formula for their waiting time. Of an engine, a page takes its
encoding, its prompt, and the decoding of running answers in the same steps. Added are the step
under way and the other pages that fit into a step (`max_num_batched_tokens`). The number of
running answers follows from Little's law.

The simulation (`tools/queue_simulation.py`, with simpy) has none of that: it runs engines that work
in steps as vLLM's scheduler does, with chunks of prompts beside the tokens of running answers and
a bound of the memory. p99 of the time to the first token, eight engines on @PEAK@, @SIMULATED@ pages each,
seeded; answers of @ANSWER_TOKENS@ tokens on average, exponentially distributed unless they are
"equal":

@SIMULATION@

- "to any engine" is what the formula estimates.
- "fewest requests" is vLLM's own rule between data-parallel engines, with counts that are never
  late. If all answers are equally long, it is worse than sending pages to any engine: requests that
  began together end together, and the engine that they leave gets the next ones all at once.
- "fewest prompts" counts only requests whose first token is not there yet. vLLM has no such rule.
- Above 80 % the memory for running requests is full at times. Prompts then wait for it, and p99 rises
  far above the formula.

The tests compare the simulated queue with theory where it is known (M/M/1, M/M/c, M/D/1).

## Assumptions

| assumption | value | option |
|---|---|---|
| pages | equal, full (@TILES@ tiles), arriving at random; nothing is cached | `--tiles` |
| text of the prompt, chat template included | @QUESTION_TOKENS@ tokens | `--question-tokens` |
| answer | @ANSWER_TOKENS@ tokens | `--answer-tokens` |
| share of the GPU's dense peak, encoder and prompt | @COMPUTE_SHARE@ | `--compute-share` |
| share of its bandwidth, decoding | @BANDWIDTH_SHARE@ | `--bandwidth-share` |
| linear layers of the language model | bf16 | `--fp8`, for a checkpoint that has them in FP8 |
| share of its most that each layer is asked for | @UTILISATION@ | `--utilisation` |
| memory that vLLM takes | @GPU_MEMORY_UTILIZATION@ | `--gpu-memory-utilization` |
| of it, activations and CUDA graphs | @OTHER_GB@ GB | |
| link of the network | @NETWORK_GBIT@ Gbit/s | `--network-gbit` |
| several ranks (`--tp`) share all work equally | without communication | |

The shares of the peaks are guesses of the usual size, not measurements. The peaks are those of the
data sheets, without sparsity. `max_num_batched_tokens` and `max_num_seqs` are vLLM's defaults for each
GPU.

Left out are: norms, activations and other element-wise work; starting of kernels; copies between
host and GPU; the engine's own CPU time (scheduling, detokenising); TLS; loss and delay of the network;
tile reuse and prefix caching, which save work ([encoder.md](encoder.md)).
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="into docs/capacity.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())
