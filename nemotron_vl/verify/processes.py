# SPDX-License-Identifier: Apache-2.0
"""Parts of a verification that run in a process of their own."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

_SECONDS = 1800


def run_elsewhere(function: Callable, *arguments, **options) -> Any:
    """Call a function in a process whose memory is free afterwards."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments, **options).result()


def run_program(module: str, task: dict[str, Any], **variables: str) -> dict[str, Any]:
    """Run a module as a program: what this process has imported is not there.

    Args:
        module: Name. Its argument is ``task`` as JSON, with ``out`` added: the file
            for its results, as JSON.
        task: Data for JSON.
        variables: Further variables of the environment.

    Returns:
        The results, or ``error`` with the end of what the program printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps({**task, "out": str(out)})],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            printed, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"It did not end in {_SECONDS} s."}
        finally:
            _end(process)
        if process.returncode or not out.exists():
            return {"error": "\n".join(printed.strip().splitlines()[-12:])}
        return json.loads(out.read_text())


def _end(process: subprocess.Popen) -> None:
    """End a process, if it still runs, and the engine that it started."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (process, *children):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(children, timeout=30)  # they hold the GPU's memory
        process.wait()
