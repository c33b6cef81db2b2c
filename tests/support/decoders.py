"""Processes that decode files of strangers, as the kernel shows them."""

import contextlib
import os
import re
import subprocess
from pathlib import Path


def decoders(
    pid: int | str = "self", script: str = "nemotron_vl_decoder.py"
) -> list[str]:
    """Process ids of the decoders, by default of videos, that a process has started."""
    found = []
    for child in _children(pid):
        with contextlib.suppress(OSError):  # it has ended
            if script in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def rights(pid: str) -> dict[str, str]:
    """Fields of a process's status, and its ``names`` of variables, ``network`` and
    ``limits``."""
    process = Path("/proc", pid)
    status = (process / "status").read_text()
    variables = (process / "environ").read_text().split("\0")
    return {
        **dict(line.split(":\t") for line in status.splitlines()),
        "names": " ".join(sorted(v.partition("=")[0] for v in variables)),
        "network": os.readlink(process / "ns/net"),
        "limits": (process / "limits").read_text(),
    }


def check_rights(found: dict[str, str], *own: str) -> None:
    """It can open nothing, has no capabilities, and knows no secret.

    Args:
        found: `rights` of a decoder.
        own: Variables of its own.
    """
    inherited = {"LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH"}
    assert {*found["names"].split()} <= inherited | {*own}
    assert found["NoNewPrivs"] == "1"
    assert {int(found[f"Cap{kind}"], 16) for kind in ("Prm", "Eff")} == {0}
    assert re.search("Max open files +0 +0 ", found["limits"])
    # The second needs a capability. The kernel forbids the first in a chroot.
    ways = (["--net", "--map-root-user"], ["--net"])
    allowed = any(
        subprocess.run(["unshare", *way, "true"]).returncode == 0 for way in ways
    )
    assert allowed == (found["network"] != os.readlink("/proc/self/ns/net"))


def _children(pid: int | str) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            found += (task / "children").read_text().split()
    return found
