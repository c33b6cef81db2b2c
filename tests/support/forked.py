"""Start vLLM's processes as forks of one process that has imported vLLM.

On CPUs vLLM starts each process with a new interpreter, which takes 10 to 17 s of one
core to import vLLM. A fork of a process that has done nothing else has the same modules
and no threads. Servers are not started this way: they run as users run them.
"""

import contextlib
import multiprocessing.forkserver
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess, SpawnContext
from unittest import mock

IMPORTED = ["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"]


class ForkedProcess(ForkServerProcess):
    """A process with the environment variables that its parent has now."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.environment = dict(os.environ)

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        # Python would start another server for the processes that this one starts.
        server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
        server.ensure_running = lambda: None
        with forked_processes():
            super().run()


@contextlib.contextmanager
def forked_processes() -> Iterator[None]:
    """Fork the processes that vLLM starts in this context."""
    multiprocessing.forkserver.set_forkserver_preload(IMPORTED)
    with mock.patch.object(SpawnContext, "Process", ForkedProcess):
        yield
