#!/usr/bin/env python3
"""Run the tests on each release of vLLM that is served, one after another.

    make test-releases
    make test-releases RELEASES="0.31 0.33" TESTS=tests/tools/test_export_upstream.py

Each release gets an environment below `build/releases`. On each release, the tests
that need no engine run, and a short selection of those that start engines. TESTS are
arguments for pytest and replace both. The table of results is printed and written to
`build/releases/table.md`. Without TESTS, its rows also replace those of the same
releases in docs/releases.md.
"""

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from cuda import CUDA, CudaEnvironment
from cuda import TESTS as CUDA_TESTS
from environments import BUILD, ROOT, Environment, locks
from ray_data import RAY, RayEnvironment
from ray_data import TESTS as RAY_TESTS

from vllm_nemotron_vl.config.nemotron_vl_cpu import processor_flags

DOCS = ROOT / "docs" / "releases.md"
# Environments that are no release.
OTHERS = {CUDA: CudaEnvironment, RAY: RayEnvironment}

# Folders whose tests start engines, and those whose tests do not depend on vLLM.
STARTS_ENGINES = [
    "tests/vllm/distributed",
    "tests/nemotron_vl/commands/test_demo.py",
    "tests/nemotron_vl/commands/test_find_engine.py",
    "tests/nemotron_vl/commands/test_read_engine.py",
    "tests/nemotron_vl/verify/test_verify.py",
    "tests/vllm/entrypoints",
    "tests/examples",
    "tests/vllm/lora",
    "tests/vllm/model_runner_v2",
    "tests/vllm/models/multimodal/generation",
    "tests/vllm/models/multimodal/pooling",
    "tests/vllm/quantization",
]
NEEDS_NO_VLLM = ["tests/tools"]

GENERATION = "tests/vllm/models/multimodal/generation"
LORA = "tests/vllm/lora/test_nemotron_vl.py"
ENGINES = [
    # answers, and parity with the reference
    f"{GENERATION}/test_reading.py::test_the_engine_answers_as_the_reference",
    f"{GENERATION}/test_nemotron_vl.py::test_greedy_tokens_equal_the_reference",
    f"{GENERATION}/test_nemotron_vl.py::test_text_ids_chat_cache_and_uuid_give_the_same",
    f"{GENERATION}/test_nemotron_vl.py::test_image_embeds_equal_the_image_they_were_made_of",
    f"{GENERATION}/test_nemotron_vl.py::test_bad_input_is_named_and_the_next_request_served",
    f"{GENERATION}/test_video.py",
    # each stage, and stages that are broken on purpose
    "tests/nemotron_vl/verify/test_verify.py",
    "tests/nemotron_vl/commands/test_verify.py",
    # lmms-eval, if it is installed
    "tests/tools/test_lmms_eval.py",
    # server
    "tests/vllm/entrypoints/openai/test_serve.py",
    "tests/vllm/entrypoints/openai/test_video.py",
    # LoRA
    f"{LORA}::test_each_adapter_answers_as_merged",
    f"{LORA}::test_two_adapters_in_one_batch",
    f"{LORA}::test_vllms_caches_know_the_adapter",
    f"{LORA}::test_served_statically_and_in_one_batch",
    f"{LORA}::test_bad_adapters_are_refused",
    # pages found and ranked
    "tests/vllm/models/multimodal/pooling",
    "tests/vllm/entrypoints/pooling",
    "tests/vllm/quantization/test_retrieval_layers.py",
    # quantised
    "tests/vllm/quantization/test_nemotron_vl.py::test_reads_within_two_points",
    # laid over a checkout
    "tests/tools/test_export_upstream.py",
    # several ranks
    "tests/vllm/distributed/test_nemotron_vl.py::test_tensor_and_encoder_data_parallel",
]
# Tests with other programs, which skip by name where one is missing: on the newest.
OPERATIONS = [
    "tests/examples/test_confined.py",
    "tests/examples/test_install_commands.py",
    "tests/examples/test_prometheus.py",
    "tests/examples/test_runbook.py",
    "tests/vllm/distributed/test_data_parallel.py",
]
# Tests of Model Runner V2: a short part on each release, all on the newest.
RUNNER_V2 = "tests/vllm/model_runner_v2"


@dataclass
class Result:
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0

    def __str__(self) -> str:
        return (
            f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*locks(), *OTHERS]
    parser.add_argument("releases", nargs="*", help=f"any of {', '.join(known)}")
    parser.add_argument("--tests", default="", help="arguments for pytest")
    args = parser.parse_args()
    unknown = set(args.releases) - set(known)
    if unknown:
        parser.error(f"no lock file for {', '.join(sorted(unknown))}")

    rows, failed = {}, []
    for release in args.releases or (locks() if args.tests else known):
        other = OTHERS.get(release)
        environment = other() if other else Environment(release)
        print(f"== vLLM {release}: {environment.describe()}", flush=True)
        try:
            environment.make()
        except (SystemExit, subprocess.CalledProcessError) as error:
            failed.append(f"{release}: its environment could not be made: {error}")
            continue
        started = time.monotonic()
        results = [
            run_tests(environment, name, arguments)
            for name, arguments in parts(release, args.tests)
        ]
        minutes = round((time.monotonic() - started) / 60)
        rows[release] = row(environment, results, minutes)
        failed += [f"{release}: {name}" for r in results for name in r.failed]

    titles = [name for name, _ in parts(release, args.tests)]
    table = "\n".join([*header(titles), *rows.values()])
    (BUILD / "table.md").write_text(table + "\n")
    print(table)
    for name in failed:
        print(f"failed: {name}")
    if not args.tests:
        replace_rows(rows)
    sys.exit(bool(failed))


def parts(release: str, tests: str) -> list[tuple[str, list[str]]]:
    """The parts of a run, each with a name and arguments for pytest."""
    if tests:
        return [("tests", shlex.split(tests))]
    if release == CUDA:
        return [("without an engine", CUDA_TESTS), ("with engines", [])]
    if release == RAY:
        return [("without an engine", []), ("with engines", RAY_TESTS)]
    left_out = [f"--ignore={path}" for path in STARTS_ENGINES + NEEDS_NO_VLLM]
    newest = release == list(locks())[-1]
    more = [*OPERATIONS, "-m", "releases or not releases"] if newest else []
    return [
        ("without an engine", ["tests", *left_out]),
        ("with engines", [*ENGINES, RUNNER_V2, *more]),
    ]


def run_tests(environment: Environment, part: str, arguments: list[str]) -> Result:
    if not arguments:
        return Result()
    report = BUILD / environment.release / f"{part.replace(' ', '_')}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [environment.python, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment.variables,
    )
    result = read_report(report) if report.exists() else Result()
    if done.returncode and not result.failed:
        result.failed.append(f"pytest itself, with status {done.returncode}")
    return result


def read_report(report: Path) -> Result:
    result = Result()
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            result.failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            result.skipped += 1
        else:
            result.passed += 1
    return result


def processor() -> str:
    """The cores and instructions of this machine, which decide how vLLM runs."""
    flags = processor_flags()
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16"}
    kinds |= {"avx512f": "AVX-512", "avx2": "AVX2"}
    kind = next((name for flag, name in kinds.items() if flag in flags), "no AVX2")
    return f"{len(os.sched_getaffinity(0))} cores, {kind}"


def header(parts: list[str]) -> list[str]:
    titles = ["vLLM", "how it ran", *parts, "minutes", "CPU", "date"]
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def row(environment: Environment, results: list[Result], minutes: int) -> str:
    cells = [environment.release, environment.describe(), *map(str, results)]
    cells += [str(minutes), processor(), datetime.date.today().isoformat()]
    return f"| {' | '.join(cells)} |"


def replace_rows(rows: dict[str, str]) -> None:
    """Replace the rows that begin alike in docs/releases.md."""
    lines = [
        rows.get(line[2:].partition(" |")[0], line)
        for line in DOCS.read_text().splitlines()
    ]
    DOCS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
