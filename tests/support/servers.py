"""Servers as forks of a process that has imported vLLM, for tests that ask them.

They start in 6 s instead of 20. Tests of the start itself run ``vllm serve``.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from nemotron_vl import server

from .forked import GROUP, LOG, ForkedProcess, preload


def run_vllm(command: list[str]) -> None:
    """Be vLLM's command, in a forked process."""
    sys.argv = command
    from vllm.entrypoints.cli.main import main

    main()


class _ForkedServer:
    """A process with what `nemotron_vl.server` uses of `subprocess.Popen`."""

    def __init__(self, command, output, env) -> None:
        assert Path(command[0]).name == "vllm", "prefixes start a process of their own"
        self.args = command
        self._process = ForkedProcess(target=run_vllm, args=(command,))
        self._process.environment = env | {LOG: os.path.abspath(output.name)}
        self._process.environment.pop(GROUP, None)  # of a process that starts this one
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status


@contextlib.contextmanager
def forked_servers() -> Iterator[None]:
    """Fork the servers that ``nemotron_vl.server`` starts in this context."""
    preload()
    with mock.patch.object(server, "_start", _ForkedServer):
        yield
