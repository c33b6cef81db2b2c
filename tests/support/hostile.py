"""For tests of what strangers send: code in files, and memory that stays bounded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "")


@contextlib.contextmanager
def bounded_memory(megabytes: float, pid: int | str = "self") -> Iterator[None]:
    """A process must take less than so much more memory while the block runs."""
    before = _memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak
    yield
    assert _memory(pid, "VmHWM") - before < megabytes


def _memory(pid: int | str, field: str) -> float:
    """A figure of a process in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1000
    raise AssertionError(f"{field} is not told")
