"""For tests with hostile input: a pickle that runs code, and bounds on memory."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from support.decoders import decoders

# File that such code writes.
MARKER = "was_run"


class Code:
    """An object that writes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "")


@contextlib.contextmanager
def bounded_memory(megabytes: float, pid: int | str = "self") -> Iterator[None]:
    """Assert that the memory of a process grows by less than this in the block."""
    with memory_of(pid) as used:
        yield
    assert used.peak < megabytes, f"{used.peak:.0f} MB"


@contextlib.contextmanager
def memory_of(pid: int | str = "self") -> Iterator[SimpleNamespace]:
    """Growth of a process's memory in the block, in megabytes.

    Yields an object with `now()`, and after the block `peak` and `left`.
    """
    used = SimpleNamespace()
    before = _memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # reset the peak
    used.now = lambda: _memory(pid, "VmRSS") - before
    yield used
    used.peak = _memory(pid, "VmHWM") - before
    used.left = used.now()


@contextlib.contextmanager
def bounded_decoders(megabytes: float, pid: int | str = "self") -> Iterator[None]:
    """Assert that the decoders of videos that a process starts use less than this."""
    peaks: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for child in decoders(pid):
                with contextlib.suppress(OSError, AssertionError):  # it has ended
                    peaks[child] = _memory(child, "VmHWM")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    most = max(peaks.values(), default=0)
    assert most < megabytes, f"{most:.0f} MB"


def _memory(pid: int | str, field: str) -> float:
    """A field of the process's status, in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1000
    raise AssertionError(f"/proc/{pid}/status has no {field}")
