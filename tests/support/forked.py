"""Start vLLM's processes as forks of one process that has imported vLLM.

On CPUs vLLM starts each process with a new interpreter, which takes 10 to 17 s of one
core to import vLLM. A fork of a process that has done nothing else has the same modules
and no threads.
"""

import contextlib
import ctypes
import gc
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess, SpawnContext
from pathlib import Path
from unittest import mock

from prometheus_client import values

# Environment variables of forked processes: a file for their output, and the process
# group of a server, which its processes join.
LOG, GROUP = "FORKED_PROCESS_LOG", "FORKED_PROCESS_GROUP"


class ForkedProcess(ForkServerProcess):
    """A process with the environment variables that its parent has now."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        if LOG in os.environ:
            _join_server(os.environ[LOG])
        _read_environment()
        # vLLM thaws at its end what it has frozen itself, to look for garbage. What the
        # forked process has frozen would thaw with it, see `forked_imports`.
        gc.unfreeze = lambda: None
        # Python would start another server for the processes that this one starts, by
        # either name. It would import vLLM again.
        server = multiprocessing.forkserver
        server._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
        server.ensure_running = server._forkserver.ensure_running  # type: ignore[attr-defined]
        with forked_processes():
            super().run()


def _read_environment() -> None:
    """Heed the variables that the C library and Prometheus' client read at start.

    Others that a module reads when it is imported have no effect in a fork, such as
    those of ``huggingface_hub``.
    """
    threshold = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    if threshold is not None:
        M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        # The default of the latter, which the C library raises with the former.
        assert mallopt(M_MMAP_THRESHOLD, int(threshold))
        assert mallopt(M_TRIM_THRESHOLD, 128 << 10)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        # Several API servers write their metrics there.
        values.ValueClass = values.get_value_class()


def _join_server(log: str) -> None:
    """Write to a server's log, and be of its process group, or found it."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    # Fails, in the log, if the server has just ended.
    os.setpgid(0, int(os.environ.setdefault(GROUP, str(os.getpid()))))


def preload() -> None:
    """Start the process that is forked and let it import vLLM, if it does not run yet.

    It outlives the test that starts it, so it does not take over this variable.
    """
    imported = ["support.forked_imports"]
    multiprocessing.forkserver.set_forkserver_preload(imported)
    with mock.patch.dict(os.environ):
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        # Python 3.11 to 3.13 do not give it the path.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        multiprocessing.forkserver.ensure_running()


def run_forked(function: Callable, *args, output: Path, seconds: float = 400) -> str:
    """What a function prints in a process that has imported vLLM; it must end well."""
    preload()
    output.touch()
    process = ForkedProcess(target=function, args=args)
    process.environment |= {LOG: str(output.resolve())}
    process.start()
    try:
        process.join(seconds)
        if process.exitcode is None:
            process.terminate()  # it ends the servers that it started
            process.join(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode == 0, output.read_text()[-5000:]
    return output.read_text()


def run_script(command: list[str]) -> None:
    """Be a script with arguments, in a forked process."""
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


@contextlib.contextmanager
def forked_processes() -> Iterator[None]:
    """Fork the processes that vLLM starts in this context."""
    preload()
    with mock.patch.object(SpawnContext, "Process", ForkedProcess):
        yield
