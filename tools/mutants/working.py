"""Run tests in forks of a process that has imported what they import, but nothing of
this repository. Importing vLLM takes 10 to 17 s of a core."""

import contextlib
import ctypes
import difflib
import importlib
import os
import resource
import signal
import sys
import time
from multiprocessing import Queue
from pathlib import Path

import psutil

_WARM = (
    *("pytest", "hypothesis", "openai", "PIL.Image", "torch", "transformers"),
    *("vllm.engine.arg_utils", "vllm.model_executor.models.radio"),
    *("vllm.model_executor.models.llama", "vllm.model_executor.models.intern_vit"),
    *("vllm.model_executor.model_loader", "vllm.renderers.hf", "vllm.multimodal.media"),
    "vllm.v1.worker.gpu_model_runner",
)
_SET_CHILD_SUBREAPER = 36
_MOST_BYTES = 12 << 30  # of a process
_ARGUMENTS = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist")


def prepare(trees: Queue) -> None:
    """Begin to work in a copy of the repository."""
    # What tests leave behind becomes a child of this process.
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    tree = Path(trees.get())
    names = tree / "build" / "names"
    names.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (names / "vllm_nemotron_vl").symlink_to(tree / "vllm")
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": f"{names}:{tree}", "OMP_NUM_THREADS": "1"}
    sys.path[:0] = [str(names), str(tree)]
    for name in _WARM:
        importlib.import_module(name)
    ours = [m for m in sys.modules if m.startswith(("nemotron_vl", "vllm_nemotron_vl"))]
    assert not ours, ours


def timed(tests: tuple[str, ...], limit: float) -> tuple[float | None, str]:
    """Seconds that tests take, or ``None`` if they fail, and what pytest said."""
    started = time.monotonic()
    passed, said = run_tests(tests, limit)
    return (time.monotonic() - started if passed else None), said


def tested(mutation, tests: tuple[str, ...], limit: float):
    """The result of a mutant, as cosmic-ray stores it."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    path, operator = mutation.module_path, get_operator(mutation.operator_name)
    with use_mutation(path, operator(), mutation.occurrence) as (before, after):
        passed, said = run_tests(tests, limit)
    names = f"a/{path}", f"b/{path}"
    diff = difflib.unified_diff(before.split("\n"), after.split("\n"), *names, n=0)
    return WorkResult(
        output=said,
        diff="\n".join(line.rstrip("\n") for line in diff),
        test_outcome=TestOutcome.SURVIVED if passed else TestOutcome.KILLED,
        worker_outcome=WorkerOutcome.NORMAL,
    )


def run_tests(tests: tuple[str, ...], limit: float) -> tuple[bool, str]:
    """Whether tests pass in a fork, and the last line or the test that failed.

    As cosmic-ray does, tests that take too long have not passed; it says ``timeout``.
    """
    log = Path("build/tests.log").resolve()
    own = psutil.Process().children()
    child = os.fork()
    if not child:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        os._exit(pytest.main([*_ARGUMENTS, *tests]))
    ends, status = time.monotonic() + limit, None
    while status is None and time.monotonic() < ends:
        time.sleep(0.02)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
    with contextlib.suppress(ProcessLookupError):  # also what the tests have started
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    for left in {*psutil.Process().children()} - {*own}:
        for process in (*left.children(recursive=True), left):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            left.wait()
    if status is None:
        return False, "timeout"
    lines = log.read_text(errors="replace").splitlines() or [""]
    named = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return status == 0, (named or lines[-1:])[0]
