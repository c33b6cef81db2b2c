# SPDX-License-Identifier: Apache-2.0
"""Context managers that run ``vllm serve`` on loopback while a block runs."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from .printable import show

_SHOWN_LINES = 20  # of the end of a log
_SHOWN_CAUSES = 3
_ERROR = re.compile(r"\b[A-Z]\w*(Error|Exception): .+")
_STOP_SECONDS = 30  # a server finishes its requests
_STARTING_STOP_SECONDS = 5  # one that starts has none


@contextlib.contextmanager
def serving(
    model: str | Path,
    *options: str,
    log: str | Path,
    timeout: float = 600,
) -> Iterator[str]:
    """Serve ``model`` while the block runs.

    Args:
        model: Folder of a checkpoint or its name on the hub.
        options: Further options of ``vllm serve``.
        log: File for the server's output.
        timeout: Seconds to wait until the server answers.

    Yields:
        Base URL of the server, such as ``http://127.0.0.1:41234``.

    Raises:
        RuntimeError: The server ended or did not answer in time; the message
            has the last lines of its log.
    """
    with serving_process(model, *options, log=log, timeout=timeout) as (_, url):
        yield url


@contextlib.contextmanager
def serving_process(
    model: str | Path,
    *options: str,
    log: str | Path,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Like `serving`, for callers that need the process or set its environment.

    Args:
        model: Folder of a checkpoint or its name on the hub.
        options: Further options of ``vllm serve``.
        log: File for the server's output.
        timeout: Seconds to wait until the server answers.
        env: Environment variables to set besides those of this process.
        prefix: A command that runs its remaining arguments, such as ``taskset``.

    Yields:
        The process and the base URL.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *prefix,
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(model),
        "--host=127.0.0.1",
        f"--port={port}",
        *options,
    ]
    with running(
        command, url=url, log=log, timeout=timeout, env=env, name="vllm serve"
    ) as process:
        yield process, url


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    url: str,
    log: str | Path,
    timeout: float = 600,
    env: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Iterator[subprocess.Popen]:
    """Run a command that answers at ``url`` while the block runs.

    A Ctrl-C ends it, a second one at once.

    Args:
        command: Program and arguments.
        url: Where ``/health`` answers once it is ready.
        log: File for its output.
        timeout: Seconds to wait for that.
        env: Environment variables to set besides those of this process.
        name: Its name in messages; by default the program's.

    Yields:
        The process, which is the leader of its own process group.

    Raises:
        RuntimeError: It ended or did not answer in time.
        SystemExit: This process got a SIGTERM, for which Python has no handler.
    """
    with _exit_at_sigterm(), open(log, "wb") as output:
        process = _start(command, output, {**os.environ, **(env or {})})
        patience = _STARTING_STOP_SECONDS
        try:
            name = name or Path(command[0]).name
            _wait_until_healthy(process, name, url, Path(log), timeout)
            patience = _STOP_SECONDS
            yield process
        except (KeyboardInterrupt, SystemExit):
            show("Stopping the server ...", sys.stderr)
            raise
        finally:
            _stop(process, patience)


def _start(
    command: Sequence[str], output: BinaryIO, env: dict[str, str]
) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
    )


@contextlib.contextmanager
def _exit_at_sigterm() -> Iterator[None]:
    """Unwind at a SIGTERM. By default it would end this process only: the other one
    has a session of its own and would stay, with the memory of its GPU."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(
    process: subprocess.Popen, name: str, url: str, log: Path, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    # No proxy reaches a server of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            opener.open(url + "/health", timeout=5).close()
            return
        time.sleep(0.5)
    lines = log.read_text(errors="replace").splitlines()
    # vLLM's first process ends with the message that another one failed.
    shown = [*_causes(lines[:-_SHOWN_LINES])[:_SHOWN_CAUSES], *lines[-_SHOWN_LINES:]]
    tail = "\n".join(shown)
    status = process.poll()
    reason = f"did not answer in {timeout:.0f} s"
    if status is not None:
        reason = f"ended with status {status}"
    raise RuntimeError(f"{name} {reason}; the end of {log}:\n{tail}")


def _causes(lines: Iterable[str]) -> list[str]:
    """The messages of errors in a log, each once."""
    found = filter(None, map(_ERROR.search, lines))
    return [*dict.fromkeys(match[0] for match in found)]


def _stop(process: subprocess.Popen, patience: float) -> None:
    """End the server and the processes that it started: its process group.

    Args:
        process: The server.
        patience: Seconds until it is killed; a Ctrl-C does it at once.
    """
    try:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    finally:
        _signal(process, signal.SIGKILL)  # also orphans of the group
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _signal(process: subprocess.Popen, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
