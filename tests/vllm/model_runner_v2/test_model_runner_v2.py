"""Run tests of other files again on vLLM's Model Runner V2, its default on GPUs.

V2 needs Triton. The backend in ``triton_cpu`` lets Triton's interpreter run V2's
kernels on the CPU. Each group of tests runs in a pytest process of its own, because
vLLM looks for Triton when it is imported. ``conftest.py`` asserts that the engines
there run V2, and that those of all other tests run V1.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.python_path import with_folders

TESTS = Path(__file__).parents[1]
GENERATION = "models/multimodal/generation"
SHORT = [
    f"{GENERATION}/test_scheduling.py",
    f"{GENERATION}/test_video.py::test_a_lossless_file_equals_the_reference",
    f"{GENERATION}/test_video.py::test_videos_and_images_in_any_order",
    f"{GENERATION}/test_video.py::test_a_prefix_may_end_inside_a_video",
    "models/multimodal/test_nemotron_vl_conditioner.py",
]
LONG = [
    pytest.param([f"{GENERATION}/test_nemotron_vl.py"], id="generation"),
    pytest.param([f"{GENERATION}/test_reading.py"], id="reading"),
    pytest.param(
        ["-m", "releases or not releases", "lora/test_nemotron_vl.py"],
        id="adapters",
    ),
    pytest.param([f"{GENERATION}/test_video.py"], id="video"),
    pytest.param(["distributed/test_nemotron_vl.py"], id="parallel"),
    pytest.param(
        ["-m", "releases or not releases", f"{GENERATION}/test_options.py"],
        id="options",
    ),
    pytest.param(
        ["-m", "releases or not releases", "models/multimodal/pooling"], id="pooling"
    ),
    pytest.param(["entrypoints/pooling/test_retrieval.py"], id="served pooling"),
]


def run_on_v2(tests: list[str]) -> str:
    """Run tests in a pytest process whose engines use V2; give its report."""
    environment = with_folders(
        Path(__file__).parent / "triton_cpu",
        TRITON_INTERPRET="1",
        VLLM_USE_V2_MODEL_RUNNER="1",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *tests],
        cwd=TESTS,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        report, _ = process.communicate(timeout=3600)
    finally:  # a rank that waits for another one would wait for ever
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, report[-20000:]
    return report


def check(report: str) -> None:
    """Assert that tests ran and none was skipped: V2 supports all they use."""
    print(report)
    assert re.search(r"\d+ passed", report)
    assert "skipped" not in report


def test_scheduling_and_the_conditioner_kernel():
    check(run_on_v2(SHORT))


@pytest.mark.releases
@pytest.mark.parametrize("tests", LONG)
def test_on_v2(tests):
    check(run_on_v2(tests))
